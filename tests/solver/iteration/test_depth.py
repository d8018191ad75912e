"""Outputs on the way, truncated backward passes, random depth: what looped models ask for.

That their gradients have the bits of stored activations is in test_gradients.py.
"""

from __future__ import annotations

from array import array
from typing import Any

import pytest
import torch
from torch import Tensor

import revdeq_kernels as rk
from tests.solver.cells import MLP, cell_and_input
from tests.solver.memory import STATE, peak
from tests.tolerances import assert_within, beside_bound
from torch_revdeq import ReconstructionError, RevDEQ, solve
from torch_revdeq.testing import assert_exact_gradients

# ---- save_at ---------------------------------------------------------------------------------


def test_saved_states_are_those_of_shorter_solves() -> None:
    f, x = cell_and_input("block")
    for state in ("exact", torch.float32):
        options: dict[str, Any] = {"state": state, "frac_bits": 18 if state == "exact" else "auto"}
        solution = solve(f, torch.zeros_like(x), x, max_steps=6, save_at=[6, 2], **options)
        short = solve(f, torch.zeros_like(x), x, max_steps=2, **options)
        assert torch.equal(solution.saved[0], solution.z)
        assert torch.equal(solution.saved[1], short.z)
        with torch.no_grad():
            plain = solve(f, torch.zeros_like(x), x, max_steps=6, save_at=[6, 2], **options)
        assert torch.equal(plain.saved[1], short.z) and not plain.saved[1].requires_grad


def test_a_loss_of_one_saved_state_alone() -> None:
    """Its gradient is that of the solve that ends there."""
    f, x = cell_and_input("mlp")
    options: dict[str, Any] = {"frac_bits": 20, "beta": 0.8}
    saved = solve(f, torch.zeros_like(x), x, max_steps=7, save_at=[3], **options).saved[0]
    short = solve(f, torch.zeros_like(x), x, max_steps=3, **options).z
    wrt = [x, *f.parameters()]
    got = torch.autograd.grad(saved.square().sum(), wrt)
    assert all(map(torch.equal, got, torch.autograd.grad(short.square().sum(), wrt)))


def test_deep_supervision_in_float_with_a_beta_that_learns() -> None:
    f, x = cell_and_input("mlp")
    beta = torch.tensor(0.4, requires_grad=True)
    assert_exact_gradients(
        f, torch.zeros_like(x), x, beta=beta, state=torch.float32, max_steps=4, save_at=[1, 2]
    )

    def saved(x: Tensor) -> tuple[Tensor, ...]:
        options: dict[str, Any] = {"max_steps": 3, "save_at": [1, 2]}
        return tuple(solve(f.double(), torch.zeros_like(x), x, **options).saved)

    assert torch.autograd.gradcheck(saved, x.detach()[:1].double().requires_grad_())
    assert torch.autograd.gradgradcheck(saved, x.detach()[:1, :].double().requires_grad_())


def test_a_saved_state_takes_its_own_memory_and_no_more() -> None:
    assert peak(16, save_at=[2, 4, 6, 8]) - peak(16) <= 4 * STATE + 4096


# ---- backward_steps --------------------------------------------------------------------------


def test_a_truncated_solve_is_one_from_a_given_pair() -> None:
    f, x = cell_and_input("mlp")
    z0 = torch.zeros_like(x).requires_grad_()
    solution = solve(f, z0, x, max_steps=5, backward_steps=2, state=torch.float64)
    with torch.no_grad():
        before = solve(f, z0, x, max_steps=3, state=torch.float64)
    after = solve(f, before.z, x, y0=before.y, max_steps=2, state=torch.float64)
    wrt = [x, *f.parameters()]
    got = torch.autograd.grad(solution.z.sum(), [z0, *wrt], allow_unused=True)
    assert got[0] is None
    # Constants as in test_gradients.py.
    bound = beside_bound(2, curvature=2.0, terms=64, magnitude=4.0)
    assert_within(got[1:], torch.autograd.grad(after.z.sum(), wrt), bound)


def test_only_the_last_digits_are_kept_and_f_is_evaluated_there_alone() -> None:
    f, x = cell_and_input("mlp")
    calls = array("b")  # a list that f holds would be put back
    f.register_forward_pre_hook(lambda *_: calls.append(1))
    solution = solve(f, torch.zeros_like(x), x, max_steps=12, backward_steps=3)
    digits = 2 * 3 * rk.digit_bytes(x.numel(), 0.5)
    assert solution.stats.state_bytes == 8 * x.numel() + digits
    solution.z.sum().backward()
    assert len(calls) == 24 + 6


@pytest.mark.parametrize("adjoint", ["reversible", "hooks"])
def test_a_truncated_way_back_is_checked(adjoint: Any) -> None:
    f, x = cell_and_input("mlp")
    z = solve(f, x, x, backward_steps=2, adjoint=adjoint).z
    next(f.parameters()).data.add_(0.1)
    with pytest.raises(ReconstructionError):
        z.sum().backward()


# ---- random depth ----------------------------------------------------------------------------


def test_a_depth_drawn_for_every_call() -> None:
    torch.manual_seed(0)
    layer = RevDEQ(MLP(), max_steps=lambda: int(torch.randint(1, 6, ())), backward_steps=2)
    x = torch.randn(6, 16)
    depths = set()
    for _ in range(20):
        layer(x).sum().backward()
        assert layer.stats is not None and layer.stats.reconstruction_error == 0.0
        depths.add(layer.stats.steps)
    assert len(depths) > 2 and depths <= {1, 2, 3, 4, 5}
