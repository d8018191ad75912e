"""The benchmark of the equilibrium cell: its counts, its gate, its files."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import revdeq_kernels as rk
from bench import __main__ as command
from bench import arguments
from bench.cell import columns, issue, memory, methods
from bench.cell import measure as cell
from bench.cell.sizes import FEATURES, Size, sizes
from bench.core import timing
from bench.core.case import Call
from bench.core.ceilings import Ceilings
from bench.core.session import Bar, Session
from bench.solver import fresh

CPU = torch.device("cpu")
FEW = ["--quick", "--only", "cell", "--features", "32", "--depths", "2", "--device", "cpu"]
EAGERLY = ["--providers", "eager", "solver", "composite"]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SIZE = Size("forward", torch.bfloat16, 32, 64, 3)

pytestmark = pytest.mark.usefixtures("one_thread")


def session(*given: str) -> Session:
    return arguments.session(arguments.parse([*FEW, *given]), [*FEW, *given])


def ways(problem: methods.Problem) -> dict[str, methods.Way]:
    """Those that compile nothing."""
    return {way.name: way for way in methods.ways(problem) if way.name != "compiled loop"}


# ---- counts ------------------------------------------------------------------------------------


def test_bytes_are_those_of_the_tensors() -> None:
    """Of whole blocks of digits: the op reads and writes each of its tensors once, but for w."""
    problem = SIZE.problem(CPU)
    u, w = problem.cell.of_input(problem.x).detach(), problem.cell.W.detach()
    z0 = torch.zeros(64, 32)
    out = rk.linear_cell_forward(u, w, z0, methods.BETA, 3, methods.ACT)
    y, z, fixed, digits = out[:4]
    forward = sum(t.nbytes for t in (u, z0, y, z, fixed, digits))
    assert cell.work(SIZE) == (forward, 5 * 2 * 64 * 32 * 32)
    end_y, end_z = fixed
    numbers = (methods.BETA, 3, methods.ACT)
    grads = rk.linear_cell_backward(y, z, end_y, end_z, digits, u, w, z0, *numbers)
    back = sum(t.nbytes for t in (y, z, fixed, digits, u, z0, grads[0], grads[2]))
    train = replace(SIZE, part="train")
    assert cell.work(train) == (forward + back, 4 * 5 * 2 * 64 * 32 * 32)


def operations_in(call: Call) -> int:
    """Of all products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["eager loop", "torch checkpoint", "solver"])
def test_the_operations_are_those_that_a_provider_computes(name: str) -> None:
    problem = SIZE.problem(CPU)
    way = ways(problem)[name]
    forward, train = (methods.call_of(part, way.solve, problem) for part in methods.TIMED)
    # The solver has U x + b in f, which counts once.
    again = (2 * problem.steps - 1) * 2 * 64 * 32 * methods.INPUTS if name == "solver" else 0
    assert operations_in(forward) == way.operations("forward", problem) + again
    if name != "solver":
        assert operations_in(train) == way.operations("train", problem)


# ---- the gate ----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", methods.TIMED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gate_lets_the_providers_pass_and_no_other(part: str, dtype: torch.dtype) -> None:
    problem = replace(SIZE, dtype=dtype, steps=8).problem(CPU)
    found = ways(problem)
    assert {"eager loop", "torch checkpoint", "solver", "composite"} <= found.keys()
    assert ("cpu, float32 state" in found) == ("cpu" in found and dtype == torch.float32)
    for way in found.values():
        if not way.limit:
            assert methods.refusal(part, way, problem) is None, way.name

    def too_few(problem: methods.Problem) -> Tensor:
        return found["eager loop"].solve(replace(problem, steps=1))

    assert "off the composite's" in str(
        methods.refusal(part, methods.Way("wrong", too_few), problem)
    )
    raising = methods.Way("raises", lambda _: 1 / 0)  # type: ignore[return-value,arg-type]
    assert "ZeroDivisionError" in str(methods.refusal(part, raising, problem))


@pytest.mark.parametrize("part", methods.TIMED)
def test_who_solves_for_the_limit_is_compared_there(part: str) -> None:
    """torchdeq is far from the composite after a few steps, and would be refused."""
    pytest.importorskip("torchdeq")
    problem = replace(SIZE, dtype=torch.float32).problem(CPU)
    way = ways(problem)["torchdeq IFT"]
    assert methods.refusal(part, way, problem) is None
    assert "off the composite's" in str(methods.refusal(part, replace(way, limit=False), problem))


def test_a_refused_provider_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "refusal", lambda *_: "it is wrong")
    limits = Ceilings(copy=1.0, matmul={"bfloat16": 1.0})
    lines = list(cell.measure(SIZE, session(*EAGERLY), limits))
    assert [line["refused"] for line in lines] == ["it is wrong"] * 3
    assert not any("p50_seconds" in line for line in lines)


# ---- lines -------------------------------------------------------------------------------------


def test_the_command_stores_and_draws(tmp_path: Path) -> None:
    arguments = [*FEW, *EAGERLY, "--rows", "32", "--threads", "1", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    records = [json.loads(line) for line in (tmp_path / "cell.jsonl").read_text().splitlines()]
    assert len(records) == 2 * 2 * 3
    for record in records:
        assert record["p50_seconds"] > 0 and record["refused"] is None and record["commit"]
        share = record["roofline_seconds"] / record["p50_seconds"]
        assert record["share_of_roofline"] == share > 0
        assert record["fastest_seconds"] <= record["p20_seconds"]
    assert (tmp_path / "cell.png").stat().st_size > 0


def test_a_run_takes_every_number_of_threads_type_and_size() -> None:
    given = ("--threads", "1", "2", "--dtypes", "float32", "bfloat16", "--rows", "16", "32")
    found = sizes(session(*given))
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 2
    assert {size.threads for size in found} == {1, 2}
    full = arguments.parse(["--full", "--device", "cpu", "--threads", "1"])
    assert {s.features for s in sizes(arguments.session(full, []))} == set(FEATURES["cpu"])


def test_the_roofline_is_the_slower_of_bytes_and_operations() -> None:
    limits = Ceilings(copy=100.0, matmul={"bfloat16": 10.0})
    assert cell.floor(300, 20, torch.bfloat16, limits) == 3.0
    assert cell.floor(300, 40, torch.bfloat16, limits) == 4.0
    # Multiply-adds in float32 serve a cell in bfloat16 too, where its matmul is slower.
    assert cell.floor(300, 40, torch.bfloat16, replace(limits, fma=12.5)) == 3.2


def test_the_share_of_the_peak_is_of_what_the_provider_computes() -> None:
    contender = timing.alone("one", "revdeq", lambda: None)
    contender.samples += [2.0, 1.0, 4.0]
    record = {"operations": 60, "bytes": 10, "roofline_seconds": 1.0, "issue_seconds": None}
    figures = cell._figures(contender, record, Ceilings(1.0, {}, fma=40.0))
    assert figures["share_of_fma"] == 0.75 and columns.share_of_peak(figures) == "75%"
    assert figures["fastest_seconds"] == 1.0
    figures = cell._figures(contender, record, Ceilings(1.0, {}))
    assert columns.share_of_peak(figures) == ""


# ---- memory ------------------------------------------------------------------------------------


def test_what_walks_back_holds_digits_and_a_loop_its_activations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In full they are asked in a process of their own; a thread starts sooner."""
    monkeypatch.setattr(fresh, "pool", partial(ThreadPoolExecutor, 1))
    given = ("--threads", "1", "--rows", "256", "--dtypes", "float32", "--depths", "2", "12")
    run = session(*given)
    run.tier = "full"
    lines = list(memory.run(run, Bar()))
    by_case = {(line["provider"], line["steps"]): line for line in lines}
    assert "compiled loop" not in {line["provider"] for line in lines}
    assert all(line["part"] == columns.MEMORY for line in lines)
    for name in ("solver", "composite", "cpu"):
        if (name, 2) not in by_case:  # no compiled extension
            continue
        shallow, deep = by_case[name, 2], by_case[name, 12]
        assert deep["digit_bytes"] == 6 * shallow["digit_bytes"] == 24 * 256 * 32 // 8
        assert deep["peak_bytes"] - shallow["peak_bytes"] == 20 * 256 * 32 // 8
        assert deep["beside_growth"] == 1.0
        assert deep["peak_in"] == "a fresh process"
    loop = by_case["eager loop", 12]
    assert loop["digit_bytes"] == 0
    # At least the states that the backward pass reads.
    assert loop["beside_bytes"] - by_case["eager loop", 2]["beside_bytes"] > 20 * 4 * 256 * 32


def test_who_runs_out_of_memory_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(question: memory.Question) -> memory.Answer:
        raise MemoryError(question.name)

    monkeypatch.setattr(memory, "answer", answer)
    lines = list(memory.run(session(*EAGERLY, "--dtypes", "bfloat16"), Bar()))
    assert len(lines) == 3
    assert lines[0]["refused"] == "out of memory: eager loop"
    assert len(columns.tables(lines)[0].rows) == len(lines)


# ---- the issue bound of a GPU ------------------------------------------------------------------


def test_the_issue_bound_is_that_of_the_recorded_instructions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """2^20 elements and 8 half steps, by 128 lanes of 100 processors at 1 GHz."""
    counts = {"forward": 25.0, "back": 40.0}
    kernels = {
        f"triton cell {way} bf16 64 act 0 form 0 digits 8": {"sm_90": {"instructions": count}}
        for way, count in counts.items()
    }
    monkeypatch.setattr(issue, "_kernels", lambda: kernels)
    monkeypatch.setattr(cell.machine, "most_clocks", lambda device: 1e9)
    monkeypatch.setattr(cell.first_use, "architecture", lambda device: "sm_90")
    properties = SimpleNamespace(multi_processor_count=100)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    gpu = torch.device("cuda", 0)
    for part, instructions in (("forward", 25.0), ("train", 65.0)):
        size = Size(part, torch.bfloat16, 64, 2**14, 4)
        got = cell.issue_bound(size, "triton", gpu)
        assert got == pytest.approx(instructions * 2**20 * 8 / (128 * 100 * 1e9))
        assert cell.issue_bound(size, "solver", gpu) is None
        assert cell.issue_bound(replace(size, dtype=torch.float32), "triton", gpu) is None
    monkeypatch.setattr(cell.machine, "most_clocks", lambda device: None)
    assert cell.issue_bound(size, "triton", gpu) is None
    line = {"issue_seconds": 1e-3, "share_of_issue": 0.25}
    assert columns.issued(line) == "1 ms, 25.0%" and columns.issued({}) == ""


@pytest.mark.parametrize(
    ("implementation", "features"), [*product(("triton", "gluon"), FEATURES["cuda"])]
)
def test_the_record_has_what_the_benchmark_measures(implementation: str, features: int) -> None:
    for part in methods.TIMED:
        assert issue.per_element(implementation, part, features, "sm_90")
