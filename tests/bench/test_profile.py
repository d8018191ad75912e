"""Where the time of a step goes: sleeps are found where they are, and ranges say what runs."""

from __future__ import annotations

import gzip
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import revdeq_kernels as rk
from bench import __main__ as command
from bench import arguments
from bench.profile import profiling, ranges
from bench.profile.attribution import PARTS
from bench.show import explained, html
from bench.solver import columns, methods, models, plan
from bench.solver.measure import Settings
from bench.solver.methods import Method, Run
from tests.bench.tiny import TINY
from torch_revdeq.adjoints import vjp
from torch_revdeq.evaluation import replay
from torch_revdeq.state import pair

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


# ---- sleeps ------------------------------------------------------------------------------------

SLEEP = 0.01


class Sleeping(nn.Module):
    """A linear map that sleeps, and whose product does."""

    def __init__(self, forward: float, backward: float) -> None:
        super().__init__()
        self.linear, self.seconds = nn.Linear(16, 16), (forward, backward)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        time.sleep(self.seconds[0])
        return Late.apply(self.linear(z) + x, self.seconds[1])


class Late(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.seconds)
        return grad, None


def seconds_of(name: str, folder: Path, forward: float = 0.0, backward: float = 0.0) -> Any:
    method = next(m for m in methods.COST if m.name == name)
    model = replace(models.make("mlp", TINY, CPU), f=Sleeping(forward, backward))
    settings = Settings(CPU, 1, rounds=3)
    return profiling.profiled(Run(method, model, 0.5, 2), settings, folder)["host_seconds"]


# A sleep lasts as long as it is told to, and a little longer; the rest of a tiny step is short.
SLACK = 4 * SLEEP


@pytest.mark.parametrize(
    ("name", "again"), [("lerp loop", 0), ("reversible exact", 4), ("checkpoint exact", 4)]
)
def test_an_f_that_sleeps_is_what_takes_the_time(tmp_path: Path, name: str, again: int) -> None:
    seconds = seconds_of(name, tmp_path, forward=SLEEP)
    assert 4 * SLEEP <= seconds.pop("f") < 4 * SLEEP + SLACK
    assert again * SLEEP <= seconds.pop("f again") <= again * SLEEP + SLACK * bool(again)
    assert sum(seconds.values()) < SLACK


@pytest.mark.parametrize("name", ["lerp loop", "reversible exact", "checkpoint exact"])
def test_a_product_that_sleeps_is_what_takes_the_time(tmp_path: Path, name: str) -> None:
    seconds = seconds_of(name, tmp_path, backward=SLEEP)
    assert 4 * SLEEP <= seconds.pop("products") < 4 * SLEEP + SLACK
    assert sum(seconds.values()) < SLACK


def slowed(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    original = getattr(owner, name)

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(SLEEP)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, slow)


@pytest.mark.parametrize(
    ("owner", "name", "part", "calls"),
    [
        (rk, "invert_z_adjoint_y_exact_", "half steps", 2),
        (pair.Pair, "invert_z_adjoint_y", "Python and gaps", 2),
        (vjp.VJPs, "_add", "Python and gaps", 4),
    ],
)
def test_a_slow_solver_is_seen_where_it_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, part: str, calls: int
) -> None:
    slowed(monkeypatch, owner, name)
    seconds = seconds_of("reversible exact", tmp_path)
    assert calls * SLEEP <= seconds.pop(part) < calls * SLEEP + SLACK
    assert sum(seconds.values()) < SLACK


# ---- real steps --------------------------------------------------------------------------------


def traced(name: str, folder: Path, steps: int = 3) -> tuple[list[str], dict[str, Any]]:
    method: Method = next(m for m in profiling.METHODS if m.name == name)
    run = Run(method, models.make("mlp", TINY, CPU), 0.5, steps)
    record = profiling.profiled(run, Settings(CPU, 1, rounds=1), folder)
    with gzip.open(folder / record["trace"], "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    ours = [e for e in events if e.get("cat") == "user_annotation"]
    return [e["name"] for e in sorted(ours, key=lambda e: (e["ts"], -e["dur"]))], record


def test_ranges_say_what_a_reversible_step_does(tmp_path: Path) -> None:
    names, _ = traced("reversible exact", tmp_path)
    assert names[:2] == ["step", "forward"]
    assert names.count("half step 0: f") == 1
    named = [name for name in names if name.startswith("half step")]
    forward = [f"half step {k}: {what}" for k in range(6) for what in ("f", "update")]
    back = [
        f"half step {k}: {what}"
        for k in reversed(range(6))
        for what in ("f again", "product", "invert + adjoint")
    ]
    assert named == forward + back
    kernels = [name.removeprefix("kernel: ") for name in names if name.startswith("kernel: ")]
    assert kernels.count("update_exact_") == 6
    assert kernels.count("invert_z_adjoint_y_exact_") == 3
    assert kernels.count("invert_y_adjoint_z_exact_") == 2
    assert kernels.count("invert_y_adjoint_z0_exact_") == 1
    assert "check" in names[names.index("backward") :]


def test_graphs_that_are_kept_are_not_evaluated_again(tmp_path: Path) -> None:
    names, record = traced("store_last all", tmp_path)
    assert not [name for name in names if name.endswith("again")]
    assert sum(name.endswith("product") for name in names) == 6
    assert record["host_seconds"]["f again"] == 0


@pytest.mark.parametrize("name", [method.name for method in methods.COST])
def test_the_parts_add_up_to_the_step(tmp_path: Path, name: str) -> None:
    names, record = traced(name, tmp_path)
    assert sum(record["host_seconds"].values()) == pytest.approx(record["step_seconds"])
    assert record["device_seconds"] is None
    assert [f"half step {k}: f" in names for k in range(7)] == [True] * 6 + [False]
    assert all(record["host_seconds"][part] > 0 for part in ("f", "products", "half steps"))


def test_nothing_is_left_of_the_ranges() -> None:
    def held() -> list[Any]:
        owners = [replay.Evaluation, vjp.VJPs, pair.Pair, torch, torch.autograd, rk]
        return [vars(owner).copy() for owner in (*owners, run.model.f)]

    run = Run(methods.LOOP, models.make("mlp", TINY, CPU), 0.5, 2)
    before = held()
    with ranges.ranges(run, CPU):
        assert held() != before
    assert held() == before
    with pytest.raises(RuntimeError), ranges.ranges(run, CPU):
        raise RuntimeError
    assert held() == before


def test_gradients_are_the_same_inside_of_the_ranges() -> None:
    for method in methods.COST:
        run = Run(method, models.make("block", TINY, CPU), 0.5, 3)
        plain = run.gradients()
        with ranges.ranges(run, CPU):
            named = run.gradients()
        assert all(map(torch.equal, named, plain))


def test_ranges_are_nvtx_ranges_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", log.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: log.append("pop"))
    with pytest.raises(RuntimeError), ranges.named("a", torch.device("cuda")):
        raise RuntimeError
    assert log == ["a", "pop"]
    with ranges.named("a", CPU):
        assert log == ["a", "pop"]


# ---- runs --------------------------------------------------------------------------------------

QUICK = ("--profile", "--quick", "--device", "cpu", "--threads", "1", "--samples", "1")


def test_a_profile_is_stored_printed_and_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("--models", "mlp", "--depths", "2", "--providers", "reversible exact")
    places = ("--out", str(tmp_path), "--jax-python", sys.executable)
    assert command.main([*QUICK, *chosen, *places]) == 0
    printed = capsys.readouterr().out
    lines = (tmp_path / "solve.profile.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["provider"] for record in records] == ["lerp loop", "reversible exact"]
    assert all((tmp_path / record["trace"]).exists() for record in records)
    page = html.page(records)
    exact = records[1]
    for part in PARTS:
        assert part in printed
        cell = f"{1e3 * exact['host_seconds'][part]:.2f} ms"
        assert cell in printed
        assert cell in page
    assert "--profile" in page
    assert sys.executable not in page


def test_a_table_of_the_device_stands_beside_that_of_the_host() -> None:
    record = {"op": "mlp", "beta": 0.5, "steps": 8, "provider": "lerp loop", "plain_seconds": 1.0}
    record |= {"refused": None}
    seconds = dict.fromkeys(PARTS, 0.25)
    lines = {"step_seconds": 2.0, "host_seconds": seconds, "device_seconds": seconds}
    heads = [table.heads[0] for table in columns.profile([record | lines])]
    assert heads == ["mlp, beta 0.5, N = 8: host", "mlp, beta 0.5, N = 8: device"]
    assert len(columns.profile([record | lines | {"device_seconds": None}])) == 1


def test_a_refusal_fails_the_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("not today")

    monkeypatch.setattr(profiling, "parts_of", broken)
    chosen = ("--models", "mlp", "--depths", "1", "--providers", "loop")
    assert command.main([*QUICK, *chosen, "--out", str(tmp_path)]) == 1
    assert "RuntimeError: not today" in capsys.readouterr().out


def test_compiled_methods_have_no_ranges() -> None:
    assert all(not method.compiled for method in profiling.METHODS)
    given = ["--device", "cpu", "--providers", "store_last"]
    run = arguments.session(arguments.parse(given), given)
    wanted = plan.wanted_methods(plan.PARTS["profile"], run, profiling.METHODS)
    assert [method.name for method in wanted] == ["lerp loop", "store_last all"]


def test_the_readme_says_what_every_part_is() -> None:
    assert set(explained.meanings("part")) == set(PARTS)


@pytest.mark.parametrize("option", [["--only", "cost"], ["--compare", "lines.jsonl"]])
def test_options_of_times_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lines.jsonl").touch()
    with pytest.raises(SystemExit):
        arguments.parse(["--profile", *option])
