"""The one command: every benchmark at its smallest size, what it lists, selects, keeps and says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from bench import __main__ as command
from bench import arguments, suite
from bench.core import ceilings, fma, machine
from bench.core.session import Bar, Record, Session
from bench.ops import run as ops
from bench.show import figures
from bench.solver import fresh, measure
from bench.suite import Benchmark
from tests import ROOT
from tests.tolerances import gradient_bound, grid_error

SMALL = ("--quick", "--device", "cpu", "--threads", "1", "--samples", "1")


def read(folder: Path, name: str) -> list[Record]:
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def session(*given: str) -> Session:
    return arguments.session(arguments.parse(given), given)


# ---- names -------------------------------------------------------------------------------------


def test_the_list_names_every_benchmark_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    printed = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in printed]
    assert len(set(names)) == len(names)
    assert {benchmark.name for benchmark in suite.BENCHMARKS} <= set(names)
    files = {module.__name__.rsplit(".", 1)[1] for module in ops.benchmarks()}
    assert files <= set(names)
    assert all(len(line.split(maxsplit=1)) == 2 for line in printed)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["cell"], ["cell"]),
        (["cell.memory"], ["cell.memory"]),
        (["memory"], ["cell.memory"]),
        (["solve"], [b.name for b in suite.BENCHMARKS if b.name.startswith("solve.")]),
        (["cost", "overhead"], ["solve.cost", "solve.overhead"]),
        (["half_step.update_"], ["ops"]),
        (["residual", "peers"], ["ops", "solve.peers"]),
        ([], [benchmark.name for benchmark in suite.BENCHMARKS]),
    ],
)
def test_parts_of_names_select(parts: list[str], expected: list[str]) -> None:
    assert [benchmark.name for benchmark in suite.select(parts)] == expected


def test_an_unknown_part_is_refused_by_name() -> None:
    with pytest.raises(SystemExit, match="that --list shows, got nonsense"):
        command.main(["--only", "cost", "nonsense"])


def test_the_readme_lists_every_benchmark() -> None:
    text = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| benchmark | measures |") : text.index("Options narrow them")]
    assert [row.split("`")[1] for row in table.splitlines()[2:] if row] == [
        benchmark.name for benchmark in suite.BENCHMARKS
    ]


# ---- rows --------------------------------------------------------------------------------------

IN_EVERY_LINE = (
    "benchmark", "op", "provider", "kind", "threads", "refused", "device", "device_name", "torch",
    "commit", "date", "command", "tier",
)  # fmt: skip


def test_every_other_benchmark_runs_at_its_smallest_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ops, cell, cost, options, peers, error and profile have tests of their own files.

    What a fresh process counts is tested in test_largest.py; a thread starts sooner.
    """
    monkeypatch.setattr(fresh, "pool", partial(ThreadPoolExecutor, 1))
    chosen = ("--only", "ceilings", "largest", "overhead", "nsight")
    names = ("--providers", "reversible exact", "graphs")
    assert command.main([*SMALL, *chosen, *names, "--out", str(tmp_path)]) == 0
    by_name = {n: read(tmp_path, n) for n in ("ceilings", "solve.overhead", "nsight")}
    largest = read(tmp_path, "solve.largest")
    for record in [line for lines in by_name.values() for line in lines] + largest:
        assert all(name in record for name in IN_EVERY_LINE)
        assert record["refused"] is None
        assert suite.family_of(record).label(record) is not None
    providers = [record["provider"] for record in by_name["ceilings"]]
    assert providers == ["copy_", "matmul float32", "matmul bfloat16", "fma float32"]
    copy, matmul, _, _ = by_name["ceilings"]
    assert copy["gb_per_second"] == pytest.approx(copy["bytes"] / copy["fastest_seconds"] * 1e-9)
    rate = matmul["operations"] / matmul["fastest_seconds"]
    assert matmul["tflop_per_second"] == pytest.approx(rate * 1e-12)
    timed = {r["provider"]: r for r in by_name["solve.overhead"] if not r["skipped"]}
    assert {"lerp loop", "reversible exact"} == set(timed)
    # f rounds a product, a sum and a tanh in float32, whose slope changes by 0.77 of what is moved,
    # at states that at most 2N roundings to the grid, of f and of the state, have moved.
    steps = max(record["steps"] for record in timed.values())
    moved = 2 * steps * 2 * grid_error(20)
    bound = gradient_bound(torch.float32, moved, steps, curvature=0.77, terms=3)
    assert all(record["gradient_error"] < bound < 1e-3 for record in timed.values())
    assert by_name["nsight"][0]["skipped"] == "expected a GPU, got none"
    found = {(r["provider"], r["axis"]): r["largest"] for r in largest}
    # One digit in place of all activations: the loop runs out where nothing else is in the way.
    assert 0 < found["lerp loop", "N"] < found["reversible exact", "N"]
    assert found["lerp loop", "batch"] < found["reversible exact", "batch"]
    printed = capsys.readouterr().out
    assert "largest batch" in printed and "for each half step" in printed
    for name in ("solve.largest.png", "solve.largest.svg", "solve.overhead.svg", "report.html"):
        assert (tmp_path / name).stat().st_size > 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg ") == 2 and "matmul bfloat16" in page


def test_the_ceilings_are_measured_once() -> None:
    run = session(*SMALL)
    first = ceilings.of(run)
    assert first == ceilings.of(run) == ceilings.of(run, 1)
    assert [r["provider"] for r in ceilings.rows(run, Bar())] == [
        "copy_", "matmul float32", "matmul bfloat16", "fma float32",
    ]  # fmt: skip
    assert measure.settings_of(run).matmul == first.matmul
    assert ceilings.FMA not in first.matmul


def test_every_number_of_threads_has_ceilings_of_its_own() -> None:
    run = session(*SMALL)
    for threads in (1, 2):
        ceilings.of(run, threads)
    assert [{r["threads"] for r in lines} for lines in run.ceilings.values()] == [{1}, {2}]


def test_the_peak_of_multiply_adds_counts_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = fma.loop()
    assert loop is not None
    with ThreadPoolExecutor(2) as pool:
        assert fma.on_threads(loop, pool, 2)() == 2 * loop() > 2 * fma.ROUNDS
    monkeypatch.setenv("CC", "no-compiler-of-this-name")
    fma.loop.cache_clear()
    try:
        run = session(*SMALL)
        assert ceilings.of(run).fma is None
    finally:
        fma.loop.cache_clear()


@pytest.mark.parametrize(("tier", "seconds"), [("--quick", 0.01), ("--full", 0.1), (None, 0.05)])
def test_the_tiers_differ_in_patience(tier: str | None, seconds: float) -> None:
    run = session("--device", "cpu", *([tier] if tier else []))
    assert run.sample_seconds == seconds
    assert run.samples(5) == (5 if tier == "--full" else 3)
    assert run.threads == machine.usable_cores()


def test_every_figure_is_of_a_benchmark() -> None:
    """A run removes an earlier one's by that name."""
    names = {benchmark.name for benchmark in suite.BENCHMARKS}
    assert {figure.name for figure in figures.FIGURES} <= names


def test_figures_of_other_benchmarks_stay_and_kept_lines_are_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first.png", "other.png"):
        (tmp_path / name).touch()
    assert run_of(monkeypatch, tmp_path, fake("first", line(1))) == 0
    assert [path.name for path in tmp_path.glob("*.png")] == ["other.png"]
    assert run_of(monkeypatch, tmp_path, fake("first", line(2)), more=("--append",)) == 0
    assert [record["provider"] for record in read(tmp_path, "first")] == ["copy 1", "copy 2"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "copy 1" in page and "copy 2" in page


# ---- what goes wrong ---------------------------------------------------------------------------


def line(n: int, **changes: object) -> Record:
    return {
        "benchmark": "ceilings", "op": "copy_", "provider": f"copy {n}", "kind": "bound",
        "threads": 1, "refused": None, "p50_seconds": 1.0, "p20_seconds": 1.0, "p80_seconds": 1.0,
        "fastest_seconds": 1.0,
        "gb_per_second": 1.0, "tflop_per_second": None,
    } | changes  # fmt: skip


def run_of(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *benchmarks: Benchmark, more: Sequence[str] = ()
) -> int:
    monkeypatch.setattr(suite, "BENCHMARKS", benchmarks)
    return command.main([*SMALL, *more, "--out", str(folder)])


def fake(name: str, *steps: Record | type[BaseException]) -> Benchmark:
    """Yields the lines, and raises what is to be raised."""

    def run(session: Session, bar: Bar) -> Iterator[Record]:
        for step in steps:
            if isinstance(step, dict):
                yield step
            else:
                raise step("not today")

    return Benchmark(name, "", run, suite.FAMILIES[0])


def test_a_benchmark_that_stops_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stops, goes_on = fake("first", line(1), RuntimeError), fake("second", line(2))
    assert run_of(monkeypatch, tmp_path, stops, goes_on) == 1
    assert [len(read(tmp_path, name)) for name in ("first", "second")] == [1, 1]
    printed = capsys.readouterr().out
    assert "first failed" in printed and "RuntimeError: not today" in printed
    assert "copy 2" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_an_interrupted_run_keeps_and_shows_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = fake("first", line(1), KeyboardInterrupt), fake("second", line(2))
    assert run_of(monkeypatch, tmp_path, first, second) == command.INTERRUPTED
    assert len(read(tmp_path, "first")) == 1
    assert not (tmp_path / "second.jsonl").exists()
    assert f"interrupted; results so far are in {tmp_path}" in capsys.readouterr().out
    assert "copy 1" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_want_of_memory_is_a_row_and_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_of(monkeypatch, tmp_path, fake("one", line(1, refused="out of memory: 1 GiB"))) == 0
    assert "no figures: copy_, copy 1: out of memory: 1 GiB" in capsys.readouterr().out
    assert run_of(monkeypatch, tmp_path, fake("one", line(1, refused="ValueError: no"))) == 1
    assert "refused: copy_, copy 1: ValueError: no" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_is_told_to_end_ends_with_its_page(tmp_path: Path) -> None:
    """By SIGTERM, as `timeout` sends it."""
    options = [*SMALL, "--only", "ceilings", "solve.error", "--depths", *map(str, range(1, 200))]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'python'}:{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", *options, "--out", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = tmp_path / "solve.error.jsonl"
    while process.poll() is None and not (lines.exists() and lines.stat().st_size):
        pass
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == command.INTERRUPTED, printed
    assert "interrupted" in printed
    assert (tmp_path / "report.html").exists()
