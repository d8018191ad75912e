"""``per_sample=d``: every index of the first d dimensions halts by itself.

Values, steps and gradients are those of test_halting.py and test_halting_gradients.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.solver.iteration.samples import ADJOINTS, TOL, problem, spread
from torch_revdeq import LinearCell, RevDEQ, solve

F32 = torch.float32


@pytest.mark.parametrize("adjoint", [*ADJOINTS, "backprop"])
def test_tokens_are_what_a_batch_of_them_is(adjoint: Any) -> None:
    """Bit for bit, where f takes every token for itself."""
    f, z0, x, rate = problem("lone tokens")
    options: dict[str, Any] = {"tol": TOL, "max_steps": 12, "adjoint": adjoint, "frac_bits": 20}

    def run(z0: Tensor, per_sample: Any, shape: tuple[int, ...]) -> list[Tensor]:
        parts = [t.view(*shape, t.shape[-1]) for t in (z0, x, rate)]
        end = solve(f, *parts, per_sample=per_sample, **options)
        assert end.stats.sample_steps is not None and end.stats.sample_steps.shape == shape
        grads = torch.autograd.grad(end.z.square().sum() + end.y.sum(), [x, rate, *f.parameters()])
        return [end.z.flatten(), end.y.flatten(), end.stats.sample_steps.flatten(), *grads]

    rows, tokens = run(z0, True, (6,)), run(z0, 2, (2, 3))
    assert all(map(torch.equal, rows, tokens))
    assert all(map(torch.equal, rows, run(z0, 3, (1, 2, 3))))


def test_true_is_one() -> None:
    f, z0, x, rate = problem("tokens")
    ends = [solve(f, z0, x, rate, tol=TOL, max_steps=12, per_sample=d) for d in (True, 1)]
    assert torch.equal(ends[0].z, ends[1].z)
    assert spread(ends[0].stats) == spread(ends[1].stats)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_beta_that_learns_and_kept_graphs_and_trees(adjoint: Any) -> None:
    f, z0, x, rate = problem("tokens")

    def pair(z: dict[str, Tensor], x: Tensor, rate: Tensor) -> dict[str, Tensor]:
        out = f(z["a"], x, rate)
        return {"a": out, "b": 0.5 * z["b"] + 0.1 * out.sum(-1)}

    start = {"a": z0, "b": torch.zeros(2, 3)}
    seen = []
    for how in (adjoint, "backprop"):
        beta = torch.tensor(0.7, requires_grad=True)
        options: dict[str, Any] = {"tol": TOL, "max_steps": 12, "per_sample": 2, "adjoint": how}
        if how == "reversible":
            options["store_last"] = 5
        end = solve(pair, start, x, rate, beta=beta, **options)
        spread(end.stats)
        loss = end.z["a"].square().sum() + end.y["b"].sum()
        seen.append(torch.autograd.grad(loss, [beta, x, rate, *f.parameters()]))
    assert all(map(torch.equal, *seen))


# ---- the cell in one op --------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["exact", F32], ids=str)
def test_one_op_halts_rows_of_any_number_of_dimensions(state: Any) -> None:
    name = "composite"
    torch.manual_seed(0)
    cell, x = LinearCell(32, 32), torch.randn(2, 3, 32)
    x = x * torch.logspace(-1, 1, 6).view(2, 3, 1)
    seen = []
    for form, dims in (((2, 3), 2), ((6,), True), ((1, 2, 3), 3)):
        layer = RevDEQ(
            cell, tol=TOL, max_steps=20, state=state, per_sample=dims, implementation=name
        )
        y0 = layer(x.view(*form, 32))
        stats = layer.stats
        assert stats is not None and stats.route.startswith(name)
        assert stats.sample_steps is not None and stats.sample_steps.shape == form
        assert stats.sample_steps.unique().numel() > 1
        seen.append([y0.flatten(), stats.sample_steps.flatten()])
    for other in seen[1:]:
        assert all(map(torch.equal, seen[0], other))
    layer = RevDEQ(cell, tol=TOL, per_sample=True, implementation=name)
    with pytest.raises(
        ValueError, match=r"got z0 with 3 dimensions .*per_sample=2 halts every row"
    ):
        layer(x)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "z0", "message"),
    [
        (True, torch.zeros(()), r"got shapes \(\); put"),
        (True, [torch.zeros(3, 2), torch.zeros(2, 3)], r"got shapes \(3, 2\), \(2, 3\)"),
        (True, [torch.zeros(3, 2), torch.zeros(())], "batch first"),
        (
            2,
            torch.zeros(3),
            r"in each of the first 2 dimensions, .* got shapes \(3,\); put",
        ),
        (2, [torch.zeros(3, 2), torch.zeros(3, 4)], r"got shapes \(3, 2\), \(3, 4\)"),
        (2, [torch.zeros(3, 2, 5), torch.zeros(3)], r"got shapes \(3, 2, 5\), \(3,\)"),
    ],
)
def test_errors(dims: Any, z0: Any, message: str) -> None:
    for grad in (True, False):
        with (
            torch.set_grad_enabled(grad),
            pytest.raises(ValueError, match=f"per_sample: expected leaves .*{message}"),
        ):
            solve(lambda z: z, z0, tol=TOL, per_sample=dims)
