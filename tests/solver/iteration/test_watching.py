"""``trace`` and ``on_step``: what they show of every step; a solve is the same with them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from tests.solver.cells import MLP
from tests.solver.iteration.watched import (
    ADJOINTS,
    CASES,
    F64,
    assert_same_bits,
    problem,
    run,
    scaled,
)
from torch_revdeq import RevDEQ, StoppingRule, solve

# ---- the same solve ------------------------------------------------------------------------------


def disturb(step: int, residual: Tensor, z: Tensor) -> bool:
    """A function that does what it can: it draws, and writes to what it was given."""
    assert not torch.is_grad_enabled() and not z.requires_grad and not residual.requires_grad
    torch.rand(step)
    z.fill_(7.0)
    residual.fill_(0.0)
    return True


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("case", CASES)
def test_a_watched_solve_is_the_same(case: str, adjoint: str) -> None:
    plain, want = run(case, adjoint=adjoint)
    assert plain.stats.residuals is None
    watched: list[dict[str, Any]] = [{"trace": True}, {"on_step": disturb}]
    for options in (*watched, watched[0] | watched[1]):
        solution, got = run(case, adjoint=adjoint, **options)
        assert_same_bits(got, want)
        assert solution.stats.steps == plain.stats.steps
        assert solution.stats.residual == plain.stats.residual
        assert (solution.stats.residuals is None) == ("trace" not in options)


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("case", CASES)
def test_the_trace_has_what_a_solve_of_so_many_steps_ends_with(case: str, adjoint: Any) -> None:
    """After n steps: the residual of the same solve with max_steps=n, which measures its last."""
    seen: list[tuple[int, Tensor]] = []
    solution, _ = run(
        case, adjoint=adjoint, trace=True, on_step=lambda n, r, z: seen.append((n, r))
    )
    stats, found = solution.stats, solution.stats.residuals
    assert found is not None and found.dtype == F64 and not found.requires_grad
    samples = () if stats.sample_steps is None else stats.sample_steps.shape
    assert found.shape == (stats.steps, *samples)
    assert [n for n, _ in seen] == [*range(1, stats.steps + 1)]
    every = CASES[case].get("check_every", 1)
    f, x, options = problem(case)
    depths = range(1, stats.steps + 1)
    saved = {"save_at": [], "backward_steps": None}
    for n in depths:
        shorter = {**options, **{k: v for k, v in saved.items() if k in options}, "max_steps": n}
        torch.manual_seed(1)
        want = solve(copy.deepcopy(f), x * 0, scaled(x), **shorter, adjoint=adjoint).stats.residual
        checked = not isinstance(options.get("tol"), StoppingRule) or n % every == 0
        assert found[n - 1].max() == want or not checked
        assert found[n - 1].isnan().any() == (not checked and n < stats.steps)
        assert torch.equal(found[n - 1].max(), seen[n - 1][1]) or not checked
    assert found[-1].max() == stats.residual


def test_a_sample_that_halted_keeps_the_residual_at_which_it_did() -> None:
    """Also where f mixes samples, so that those which move on would change it."""
    f, x, _ = problem("tol")

    def mixing(z: Tensor, x: Tensor) -> Tensor:
        return f(z, x) - 0.2 * z.mean(0)

    for every in (1, 2):
        options = {"per_sample": True, "check_every": every, "tol": 0.02, "max_steps": 40}
        start = torch.logspace(-3, 1.0, 6).view(6, 1).expand(6, 16)  # some nearer to the end
        stats = solve(mixing, start, 0 * x, trace=True, **options).stats
        found, steps = stats.residuals, stats.sample_steps
        assert found is not None and steps is not None and len(set(steps.tolist())) > 1
        for sample, taken in enumerate(steps.tolist()):
            assert (found[taken - 1 :, sample] == found[taken - 1, sample]).all()
            assert found[taken - 1, sample] < 0.02
            assert (found[every - 1 : taken - 1 : every, sample] >= 0.02).all()


def test_a_state_without_elements_has_residuals_of_zero() -> None:
    seen: list[Tensor] = []
    empty = torch.zeros(0, 4)
    watched: dict[str, Any] = {"trace": True, "on_step": lambda n, r, z: seen.append(r)}
    options: dict[str, Any]
    for options in ({"tol": None}, {"tol": 0.1, "per_sample": True}):
        stats = solve(torch.tanh, empty, max_steps=3, **watched, **options).stats
        assert stats.residuals is not None and stats.residuals.shape[0] == stats.steps
        assert not stats.residuals.any() and not torch.stack(seen).any()


def test_several_leaves() -> None:
    def f(z: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"a": torch.tanh(z["b"]).mean(1), "b": z["b"] * 0.5 + z["a"][:, None], "c": z["c"]}

    z0 = {"a": torch.ones(3), "b": torch.randn(3, 4), "c": torch.zeros(0)}
    seen: list[Any] = []
    solution = solve(f, z0, trace=True, on_step=lambda *given: seen.append(given))
    want = [solve(f, z0, max_steps=n + 1).stats.residual for n in range(8)]
    assert solution.stats.residuals is not None
    assert solution.stats.residuals.tolist() == want == [float(r) for _, r, _ in seen]
    for _, _, z in seen:
        assert {k: v.shape for k, v in z.items()} == {k: v.shape for k, v in z0.items()}
    assert all(torch.equal(seen[-1][2][k], solution.z[k]) for k in z0)


def test_with_a_process_group_the_residuals_are_those_of_this_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another rank is further away: its residual decides, and is no part of the trace."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        f, x, _ = problem("tol")
        alone = solve(f, x * 0, x, max_steps=6, trace=True).stats
        calls: list[float] = []

        def reduce(residual: Tensor, *_: Any, **__: Any) -> None:
            calls.append(float(residual))
            residual.fill_(5.0)

        monkeypatch.setattr(dist, "all_reduce", reduce)
        options: dict[str, Any] = {"tol": 0.1, "check_every": 2, "max_steps": 6, "trace": True}
        stats = solve(f, x * 0, x, process_group=dist.group.WORLD, **options).stats
    finally:
        dist.destroy_process_group()
    assert len(calls) == 3 and stats.residual == 5.0 and not stats.converged
    assert stats.residuals is not None and alone.residuals is not None
    assert torch.equal(stats.residuals, alone.residuals)


# ---- the user's function -------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_its_error_ends_the_solve_and_leaves_nothing_behind(adjoint: Any) -> None:
    def fail(step: int, residual: Tensor, z: Tensor) -> None:
        if step == 3:
            raise KeyError("mine")

    for case in ("all steps", "dropout", "batch norm"):
        want = run(case, adjoint=adjoint)[1]
        with pytest.raises(KeyError, match="mine"):
            run(case, adjoint=adjoint, on_step=fail)
        assert_same_bits(run(case, adjoint=adjoint)[1], want)


def test_what_it_keeps_stays_as_it_was() -> None:
    f, x, _ = problem("all steps")
    kept: list[Tensor] = []
    solution = solve(f, x * 0, x, save_at=[1, 4, 8], on_step=lambda n, r, z: kept.append(z))
    for step, z in zip((1, 4, 8), solution.saved, strict=True):
        assert torch.equal(kept[step - 1], z)


def test_copies_of_a_layer_share_it() -> None:
    class Logger:
        def __deepcopy__(self, memo: Any) -> None:
            raise AssertionError("a log has one file")

        def note(self, step: int, residual: Tensor, z: Tensor) -> None:
            self.last = step

    logger = Logger()
    layer = RevDEQ(MLP(), on_step=logger.note, trace=True)
    twin = copy.deepcopy(layer)
    twin(torch.randn(2, 16))
    assert logger.last == 8 and twin.stats is not None and twin.stats.residuals is not None
    assert "trace=True" in repr(layer)
