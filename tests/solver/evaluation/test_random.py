"""Random numbers, autocast, parametrizations: f meets the conditions of the forward pass again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.solver.cells import MLP, Block
from torch_revdeq import ReconstructionError, solve
from torch_revdeq.testing import assert_exact_gradients

ADJOINTS = ["reversible", "hooks", "checkpoint"]


def start() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(6, 16)


# ---- random numbers --------------------------------------------------------------------------


def masks(f: MLP) -> list[Tensor]:
    found: list[Tensor] = []
    f.drop.register_forward_hook(lambda _, inputs, out: found.append((out != 0).detach()))
    return found


def test_masks_differ_from_half_step_to_half_step_and_from_solve_to_solve() -> None:
    x = start() + 10.0  # no zeros of its own
    f = MLP(p=0.5)
    found = masks(f)
    f.a.weight.data.zero_()
    solve(lambda z: z + 0 * f(z), x, max_steps=4)
    solve(lambda z: z + 0 * f(z), x, max_steps=4)
    assert len(found) == 16
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_shared_is_one_mask_for_the_solve() -> None:
    x = start() + 10.0
    f = MLP(p=0.5)
    found = masks(f)
    for _ in range(2):
        solve(lambda z: z + 0 * f(z), x, max_steps=4, rng="shared")
    assert all(torch.equal(found[0], mask) for mask in found[:8])
    assert all(torch.equal(found[8], mask) for mask in found[8:])
    assert not torch.equal(found[0], found[8])


def test_the_generators_are_left_as_users_expect() -> None:
    """An f that draws nothing leaves them alone; the backward pass always does."""
    x = start().requires_grad_()
    before = torch.get_rng_state()
    solve(MLP().eval(), x).z.sum().backward()
    torch.manual_seed(0)
    f = MLP(p=0.3)
    before = torch.get_rng_state()
    z = solve(f, x).z
    after = torch.get_rng_state()
    assert not torch.equal(before, after)
    torch.rand(7)
    drawn = torch.get_rng_state()
    z.sum().backward()
    assert torch.equal(drawn, torch.get_rng_state())
    torch.set_rng_state(before)
    with torch.no_grad():
        again = solve(f, x).z
    assert torch.equal(again, z)  # the same numbers under no_grad
    assert torch.equal(after, torch.get_rng_state())


def test_how_far_the_generator_moves_does_not_depend_on_the_depth() -> None:
    x, f, ends = start(), MLP(p=0.3), []
    for steps in (2, 6):
        torch.manual_seed(0)
        solve(f, x, max_steps=steps)
        ends.append(torch.get_rng_state())
    assert torch.equal(*ends)


def test_f_that_draws_nothing_does_not_move_the_generator() -> None:
    x, f = start(), MLP()
    before = torch.get_rng_state()
    solve(f, x)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("adjoint", ["reversible", "hooks"])
def test_a_generator_of_its_own_is_noticed(adjoint: str) -> None:
    x, generator = start().requires_grad_(), torch.Generator().manual_seed(1)
    z = solve(
        lambda z: torch.tanh(z) + torch.rand(6, 16, generator=generator),
        x,
        adjoint=adjoint,  # type: ignore[arg-type]
    ).z
    with pytest.raises(ReconstructionError, match="its own Generator"):
        z.sum().backward()


def test_without_replay_a_wrong_gradient_is_noticed() -> None:
    x = start().requires_grad_()
    z = solve(MLP(p=0.3), x, rng="none").z
    with pytest.raises(ReconstructionError):
        z.sum().backward()


# ---- autocast --------------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_backward_outside_and_inside_of_autocast(adjoint: str) -> None:
    """f has the dtypes of its forward pass wherever backward() is called."""
    f, x = Block(), torch.randn(2, 5, 16)

    def gradient(forward: bool, backward: bool, adjoint: str) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=forward):
            z = solve(f, torch.zeros_like(x), x, adjoint=adjoint, max_steps=3).z  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16, enabled=backward):
            return list(torch.autograd.grad(z.float().square().sum(), list(f.parameters())))

    for forward, backward in ((True, False), (True, True), (False, True)):
        got, want = (gradient(forward, backward, how) for how in (adjoint, "backprop"))
        assert all(map(torch.equal, got, want)), (forward, backward)


def weight_and_bias_after(cell: nn.Linear, *, plainly: bool, adjoint: str = "auto") -> list[Tensor]:
    """Gradients after 256 steps at a small beta, where each evaluation adds little."""
    x, beta = torch.rand(16, 8, generator=torch.Generator().manual_seed(0)), 0.01

    def f(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(cell(z)) + x

    x = x.to(cell.weight.dtype)
    y = z = torch.zeros_like(x)
    if plainly:
        for _ in range(256):
            y = (1 - beta) * y + beta * f(z, x)
            z = (1 - beta) * z + beta * f(y, x)
    else:
        z = solve(f, z, x, beta=beta, max_steps=256, adjoint=adjoint).z  # type: ignore[arg-type]
    return list(torch.autograd.grad(z.float().sum(), [cell.weight, cell.bias]))


@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "checkpoint", "backprop"])
def test_many_evaluations_under_autocast_are_summed_in_float32(adjoint: str) -> None:
    """bfloat16 rounds each to 2^-9, and the roundings of a sum in float32 do not add up to more."""
    torch.manual_seed(0)
    cell = nn.Linear(8, 8)
    right = weight_and_bias_after(copy.deepcopy(cell).double(), plainly=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = weight_and_bias_after(cell, plainly=False, adjoint=adjoint)
        loop = weight_and_bias_after(cell, plainly=True)
    for ours, plain, want in zip(found, loop, right, strict=True):
        assert (ours - want).norm() <= 2**-7 * want.norm()
        assert (plain - want).norm() > 4 * 2**-7 * want.norm()  # torch's autocast, by its cache


def test_autocast_leaves_no_cast_weights_behind() -> None:
    """A weight cast under no_grad must not serve a later evaluation that needs its gradient."""
    f, x = MLP(), start()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            solve(f, x)
        out = f(x)
    out.sum().backward()
    assert f.a.weight.grad is not None and f.a.weight.grad.abs().sum() > 0


def test_autocast_after_the_parameter_was_cast_outside() -> None:
    f, x = MLP(), start()
    with torch.autocast("cpu", torch.bfloat16):
        outside = f(x)  # leaves its casts in autocast's cache
        z = solve(f, x, max_steps=2).z
    (outside.sum() + z.sum()).backward()
    assert f.a.weight.grad is not None


def test_fp16_with_a_grad_scaler() -> None:
    """Scaled losses, unscaled gradients, a step: as with stored activations."""
    x = start()

    def trained(adjoint: str) -> list[Tensor]:
        torch.manual_seed(1)
        f = MLP()
        optimizer = torch.optim.SGD(f.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                z = solve(f, torch.zeros_like(x), x, adjoint=adjoint, max_steps=3).z  # type: ignore[arg-type]
            scaler.scale(z.float().square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        return [p.detach().clone() for p in f.parameters()]

    assert all(map(torch.equal, trained("reversible"), trained("backprop")))


def test_an_overflow_of_the_scaled_gradient_is_the_scalers_to_find() -> None:
    f, x = MLP(), start()
    with torch.autocast("cpu", torch.float16):
        z = solve(f, torch.zeros_like(x), x, max_steps=2).z
    (z.float().sum() * 1e30).backward()
    assert not torch.isfinite(f.a.weight.grad).all()  # type: ignore[arg-type]


# ---- parametrizations ------------------------------------------------------------------------


def test_a_buffer_that_f_reads_and_writes_is_refused() -> None:
    x, f = start(), MLP()
    nn.utils.parametrizations.spectral_norm(f.a)
    with pytest.raises(
        RuntimeError,
        match=r"not to read the buffers.*'_u' in _SpectralNorm.*eval mode.*adjoint='backprop'",
    ):
        solve(f, x)
    solve(f, x, adjoint="backprop").z.sum().backward()
    with torch.no_grad():
        solve(f, x)
    f.eval()
    assert_exact_gradients(f, x)


def test_weight_norm_and_its_cache() -> None:
    x, f = start(), MLP()
    nn.utils.parametrizations.weight_norm(f.a)
    assert_exact_gradients(f, x)
    with (
        nn.utils.parametrize.cached(),
        pytest.raises(RuntimeError, match=r"parametrize.cached\(\)"),
    ):
        solve(f, x)


def test_a_tol_needs_one_mask_for_all_steps() -> None:
    """With a mask per evaluation the residual stays at the difference that the masks make."""
    torch.manual_seed(0)
    drop, x = nn.Dropout(0.5), torch.randn(16, 8)
    f = lambda z, x: 0.5 * drop(torch.tanh(z + x))  # noqa: E731
    options: dict[str, Any] = {"tol": 1e-4, "max_steps": 50}
    each = solve(f, torch.zeros_like(x), x, **options).stats
    assert each.result == "max_steps" and each.residual > 0.1
    assert solve(f, torch.zeros_like(x), x, rng="shared", **options).stats.result == "converged"
    drop.eval()
    assert solve(f, torch.zeros_like(x), x, **options).stats.result == "converged"
