"""The benchmark of the solver: its memory, its errors, its files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import revdeq_kernels as rk
from bench import __main__ as command
from bench.core import memory
from bench.core.session import Record
from bench.show import figures
from bench.solver import measure, methods, models
from bench.solver.bare import BARE
from bench.solver.methods import Method, Run
from tests.bench.tiny import TINY
from tests.tolerances import gradient_bound, grid_error
from torch_revdeq import solve

CPU = torch.device("cpu")
BY_NAME = {method.name: method for method in methods.COST}


pytestmark = pytest.mark.usefixtures("one_thread")


def run_of(name: str, *, steps: int, model: str = "mlp", beta: float = 0.5) -> Run:
    return Run(BY_NAME[name], models.make(model, TINY, CPU), beta, steps)


# ---- memory ----------------------------------------------------------------------------------


def test_reversible_memory_grows_by_the_digits_alone() -> None:
    """And that of the loop by its activations: at least the four inputs of the layers."""

    def peak(name: str, steps: int) -> int:
        run = run_of(name, steps=steps)
        run.gradients()
        return memory.peak_bytes(run.gradients, CPU)

    state = TINY.rows * TINY.width
    digits = 2 * rk.digit_bytes(state, 0.5)
    assert peak("reversible float32", 12) == peak("reversible float32", 4)
    assert peak("reversible exact", 12) - peak("reversible exact", 4) == 8 * digits
    assert peak("lerp loop", 12) - peak("lerp loop", 4) >= 8 * 2 * 4 * 4 * state


# ---- the ops by hand -------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny", "block", "vision"])
@pytest.mark.parametrize("beta", [0.5, 0.8])
def test_the_ops_by_hand_have_the_gradient_of_the_solver(model: str, beta: float) -> None:
    made = models.make(model, TINY, CPU)
    by_hand = Run(BARE, made, beta, 3).gradients()
    by_solver = Run(BY_NAME["reversible exact"], made, beta, 3).gradients()
    assert all(map(torch.equal, by_hand, by_solver))


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["mlp", "block", "language", "vision"])
@pytest.mark.parametrize("beta", [0.5, 0.8])
def test_exact_states_have_the_gradient_of_stored_activations(model: str, beta: float) -> None:
    names = "reversible exact", "backprop exact", "checkpoint exact"
    runs = [run_of(name, steps=6, model=model, beta=beta) for name in names]
    walked, *stored = [run.gradients() for run in runs]
    for grads in stored:
        assert all(map(torch.equal, grads, walked))


def test_the_loop_is_the_iteration_of_solve() -> None:
    """Without a rounding: integers, and beta 0.5 for a few steps."""
    x = torch.arange(-8.0, 8.0)
    model = replace(models.make("mlp", TINY, CPU), f=Negated(), z0=torch.zeros(16), x=x)
    assert torch.equal(
        methods.lerp_loop(model.f, model.z0, x, 0.5, 4),
        solve(model.f, model.z0, x, max_steps=4, state=torch.float32).z,
    )


class Negated(torch.nn.Module):
    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return x - 2 * z


def test_the_distance_is_that_of_all_parameters_as_one_vector() -> None:
    reference = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    grads = [torch.tensor([3.0, 0.5]), torch.tensor([[4.0]])]
    assert measure.relative_distance(grads, reference) == 0.1
    assert measure.relative_distance(reference, reference) == 0
    assert math.isnan(measure.relative_distance([g * math.nan for g in grads], reference))
    assert measure.finite(math.nan) is measure.finite(math.inf) is measure.finite(None) is None


def test_the_reference_is_the_float64_gradient_of_the_same_numbers() -> None:
    model = models.make("block", TINY, CPU).to(torch.bfloat16)
    grads = methods.reference_gradients(model, 0.5, 3)
    again = methods.reference_gradients(model.to(torch.float64), 0.5, 3)
    assert all(grad.dtype == torch.float64 for grad in grads)
    assert all(map(torch.equal, grads, again))


def records_of(method: Method, *, beta: float, steps: int) -> dict[str, object]:
    point = measure.Point("error", "block", TINY, beta, steps, (method,))
    model = models.make("block", TINY, CPU)
    return next(measure.measure(point, measure.Settings(CPU, 1), model))


def test_a_lost_state_is_measured_and_marked() -> None:
    float32, bfloat16 = (
        Method(str(d), d, "reversible", d) for d in (torch.float32, torch.bfloat16)
    )
    assert records_of(float32, beta=0.5, steps=2)["raises"] is False
    lost = records_of(float32, beta=0.9, steps=8)
    assert lost["raises"] is True
    assert isinstance(lost["reconstruction_error"], float)
    assert lost["reconstruction_error"] > 1e-3
    assert isinstance(lost["gradient_error"], float)
    # So far from the start that there is no number for it.
    overflown = records_of(bfloat16, beta=0.9, steps=48)
    assert overflown["refused"] is None
    assert overflown["raises"] is True
    assert overflown["reconstruction_error"] is None


def test_a_float64_state_is_held_back_by_what_a_float32_f_reads_of_it() -> None:
    """At beta 0.9 states lie midway between two float32 numbers: their last bit decides."""
    model = models.make("block", models.CPU.with_batch(2), CPU)
    state = 0.9 * model.f(model.z0, model.x).detach().double()
    below, above = (torch.nextafter(state, state.sign() * end).float() for end in (0, math.inf))
    assert 1 / 13 < (below != above).double().mean() < 1 / 11

    method = Method("float64", torch.float64, "reversible")
    runs = [Run(method, model.to(dtype), 0.9, 2) for dtype in (torch.float32, torch.float64)]
    stats = [run.gradients_and_stats()[1] for run in runs]
    narrow, wide = (s.reconstruction_error for s in stats if s is not None)
    assert narrow is not None
    assert wide is not None
    assert narrow > torch.finfo(torch.float32).eps > 2**20 * wide


def test_operations_are_those_of_f_and_of_two_products() -> None:
    """By hand: a multiplication and an addition for every row and weight, three times."""
    mlp, vision = (models.make(name, TINY, CPU) for name in ("mlp", "vision"))
    assert measure.operations_of(mlp, 5) == 2 * 5 * 3 * 2 * TINY.rows * 4 * TINY.width**2
    images = TINY.vision
    weights = 2 * 9 * images.channels**2
    pixels = images.batch * images.side**2
    assert measure.operations_of(vision, 5) == 2 * 5 * 3 * 2 * pixels * weights
    rates = measure._rates(100, {"p50_seconds": 2.0}, 200.0)
    assert (rates["tflop_per_second"], rates["share_of_matmul"]) == (50e-12, 0.25)


@pytest.mark.parametrize("model", ["language", "vision"])
def test_the_papers_blocks_are_the_papers(model: str) -> None:
    """31 dim^2 weights of the language block, and in both f(z, x) by hand."""
    made = models.make(model, TINY, CPU)
    z, x = made.x.flip(0), made.x
    if model == "language":
        weights = sum(p.numel() for p in made.parameters if p.dim() == 2)
        assert weights == 31 * TINY.language.dim**2
        # Causal: what comes later changes nothing before it, but for its own token.
        later = x.clone()
        later[:, -1] += 1
        assert torch.equal(made.f(z, later)[:, :-1], made.f(z, x)[:, :-1])
        assert not torch.equal(made.f(z, later)[:, -1], made.f(z, x)[:, -1])
    else:
        c, n = (list(getattr(made.f, name)) for name in ("convolutions", "norms"))
        by_hand = n[2](torch.relu(z + n[1](x + c[1](torch.relu(n[0](c[0](z)))))))
        assert torch.equal(made.f(z, x), by_hand)


# ---- runs ------------------------------------------------------------------------------------

QUICK = ("--quick", "--device", "cpu", "--threads", "1", "--samples", "1")


def read(folder: Path, part: str) -> list[Record]:
    lines = (folder / f"solve.{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_stores_lines_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("--only", "cost", "solve.error", "--depths", "1", "4", "--betas", "0.8")
    assert command.main([*QUICK, *chosen, "--models", "mlp", "--out", str(tmp_path)]) == 0
    cost, error = read(tmp_path, "cost"), read(tmp_path, "error")
    records = cost + error
    assert {(r["op"], r["steps"]) for r in cost} == {("mlp", 1), ("mlp", 4)}
    assert len(cost) == 2 * len(methods.COST)
    assert len(error) == 2 * len(methods.ERROR)
    for record in records:
        assert record["refused"] is None
        assert all(record[name] for name in ("device_name", "torch", "commit", "date", "threads"))
    for record in cost:
        assert 0 < record["p20_seconds"] <= record["p50_seconds"] <= record["p80_seconds"]
        assert record["peak_bytes"] > 0 and record["peak_in"] == "the process of the times"
        rate = record["operations"] / record["p50_seconds"]
        assert record["tflop_per_second"] == pytest.approx(rate * 1e-12)
        assert record["share_of_matmul"] > 0
        assert record["ratio_to_loop"] == 1 or record["provider"] != "lerp loop"
    exact = {r["gradient_error"] for r in cost if r["op"] == "mlp" and "exact" in r["provider"]}
    assert len(exact) == 2  # one for each depth, and not one for each adjoint
    assert {r["reconstruction_error"] for r in records if r["provider"] == "reversible exact"} == {
        0
    }
    for name in ("solve.cost.png", "solve.error.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "mlp, beta 0.8" in printed
    assert "exact, f bfloat16" in printed
    assert "check=True raises" in printed

    again = tmp_path / "again"
    assert figures.main([str(tmp_path / "solve.error.jsonl"), "--out", str(again)]) == 0
    drawn = (again / "solve.error.png").read_bytes()
    assert drawn == (tmp_path / "solve.error.png").read_bytes()


NOT_COMPILED = [m.name for m in methods.OPTIONS if not m.compiled]


@pytest.mark.parametrize(
    "names",
    [
        NOT_COMPILED,
        pytest.param([m.name for m in methods.OPTIONS if m.compiled], marks=pytest.mark.slow),
    ],
    ids=["plain", "compiled"],
)
def test_options_are_measured_beside_each_other(tmp_path: Path, names: list[str]) -> None:
    chosen = ("--only", "options", "--models", "mlp", "--depths", "2")
    assert command.main([*QUICK, *chosen, "--providers", *names, "--out", str(tmp_path)]) == 0
    records = {record["provider"]: record for record in read(tmp_path, "options")}
    assert set(names) <= set(records)
    if names == NOT_COMPILED:
        assert "needs a GPU" in records.pop(methods.GRAPHED.name)["skipped"]
    # The roundings of a float32 f, of four layers that sum 64 products each, at states on the grid.
    bound = gradient_bound(torch.float32, 4 * 2 * grid_error(20), 2, curvature=1.0, terms=4 * 64)
    assert all(record["gradient_error"] < bound for record in records.values())
    if names == NOT_COMPILED:
        # What is saved costs its own memory: a copy of z for every step.
        saved, without = (records[n]["peak_bytes"] for n in ("save_at all", "reversible exact"))
        size = 4 * records["save_at all"]["elements"]
        assert without < saved <= without + 2 * size
        stored = records["store_last all"]["peak_bytes"]
        assert stored > without + 2 * size


def test_a_refusal_fails_the_run_and_lines_can_be_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(call: object, device: torch.device) -> int:
        raise RuntimeError("not today")

    chosen = ("--only", "options", "--models", "mlp", "--depths", "1", "--providers", "save_at")
    assert command.main([*QUICK, *chosen, "--out", str(tmp_path)]) == 0
    monkeypatch.setattr(measure, "peak_bytes", broken)
    assert command.main([*QUICK, *chosen, "--out", str(tmp_path), "--append"]) == 1
    assert "not today" in capsys.readouterr().out
    kept = [(record["provider"], record["refused"]) for record in read(tmp_path, "options")]
    assert [name for name, _ in kept] == ["lerp loop", "save_at all"] * 2
    assert [reason is None for _, reason in kept] == [True, True, False, False]
