"""What `python -m bench` refuses, how it ends in time, and what a narrow terminal shows."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bench import __main__ as command
from bench import arguments, suite
from bench.core import labels, load, stored
from bench.core.budget import GENEROUS, RESERVE, Budget, OutOfTimeError, limit
from bench.core.session import Bar, Record, Session
from bench.show import terminal
from bench.suite import Benchmark
from tests import ROOT

QUICK = ("--quick", "--device", "cpu", "--threads", "1", "--samples", "1")


def a_line() -> Record:
    (line,) = stored.lines(stored.XEON, "ops")[:1]
    return line


# ---- wrong choices -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (["--models", "resnet"], r"argument --models: invalid choice: 'resnet' .*'mlp'"),
        (["--minutes", "none"], r"argument --minutes: expected a number above 0, got 'none'"),
        (["--device", "tpu9"], r"argument --device: expected cpu or cuda, got 'tpu9'"),
        (["--quick", "--full"], r"--full: not allowed with argument --quick"),
    ],
)
def test_a_wrong_choice_is_answered_in_one_line(
    given: list[str], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        arguments.parse(given)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("python -m bench: ")
    assert error.endswith("; --help lists the options\n")
    assert re.search(answer, error)


SCRIPTS = (
    "bench", "bench.show.compare", "bench.show.figures", "bench.show.html", "bench.show.readme",
    "bench.visit", "bench.visit.smoke", "tools.aot.compile", "tools.cuda.resources",
    "tools.screenshots",
)  # fmt: skip

UNDOCUMENTED = """
import argparse, runpy, sys, warnings
warnings.simplefilter("ignore")
def check(parser, *rest, **named):
    parsers = [parser]
    for one in parsers:
        for action in one._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
                continue
            if not action.help:
                print(module, action.option_strings or action.dest)
    raise SystemExit
argparse.ArgumentParser.parse_args = check
for module in sys.argv[1:]:
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit:
        pass
"""


def test_every_option_of_every_script_has_a_help_text() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNDOCUMENTED, *SCRIPTS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    parsers = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for folder in ("bench", "tools")
        for path in (ROOT / folder).rglob("*.py")
        if "add_argument(" in path.read_text(encoding="utf-8")
    ]
    names = {name.removesuffix(".__main__").replace("bench.arguments", "bench") for name in parsers}
    assert names == set(SCRIPTS)


# ---- our kernels are missing -------------------------------------------------------------------


def test_without_the_compiled_backend_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(command.backends._missing, "cpu", "it was not built")
    given = [*QUICK, "--only", "ceilings", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="kernels are missing: backend 'cpu': it was not"):
        command.main(given)
    assert not (tmp_path / "out").exists()
    assert command.main([*given, "--without-compiled"]) == 0


# ---- in time -----------------------------------------------------------------------------------


def test_a_run_of_everything_has_six_minutes_and_others_what_they_are_given() -> None:
    found = [
        arguments.parse(given).minutes
        for given in ([], ["--quick"], ["--full"], ["--only", "ops"], ["--full", "--minutes", "9"])
    ]
    assert found == [6.0, 6.0, None, None, 9.0]


def test_the_time_that_is_left_is_shared_by_weight() -> None:
    budget = Budget(10.0, time.monotonic() - 60.0)
    left = 600.0 * (1 - RESERVE) - 60.0
    assert budget.share([1.0, 1.0, 2.0]) == pytest.approx(GENEROUS * left / 4, abs=1.0)
    assert budget.share([3.0]) == pytest.approx(left, abs=1.0)
    assert Budget(1.0, time.monotonic() - 600.0).share([1.0]) == 0.0
    assert Budget(None, 0.0).share([1.0]) is None


def test_no_handler_of_exceptions_takes_the_end_of_time_for_its_own() -> None:
    def row() -> None:
        with contextlib.suppress(Exception):  # as every benchmark does of a row that fails
            time.sleep(10.0)

    with pytest.raises(OutOfTimeError), limit(0.05):
        row()
    with limit(None):
        pass


def endless(session: Session, bar: Bar) -> Iterator[Record]:
    """One row, and another that takes too long."""
    line = {"benchmark": "ceilings", "op": "copy_", "provider": "copy 1", "kind": "bound"}
    yield line | {"refused": "out of memory: 1 GiB"}
    time.sleep(60.0)


def test_a_benchmark_that_takes_too_long_keeps_its_rows_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "BEGIN", time.monotonic())
    monkeypatch.setattr(
        suite, "BENCHMARKS", [Benchmark(name, "", endless, suite.FAMILIES[0]) for name in "ab"]
    )
    monkeypatch.setattr(command.html, "page", lambda records: "")
    begin = time.monotonic()
    assert command.main([*QUICK, "--minutes", "0.1", "--out", str(tmp_path)]) == 0
    assert time.monotonic() - begin < 30.0
    printed = capsys.readouterr().out
    for name in "ab":
        assert len((tmp_path / f"{name}.jsonl").read_text().splitlines()) == 1
        assert f"{name}: stopped to end the run within 0.1 minutes; `python -m bench" in printed


def test_an_interrupt_before_the_first_row_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(session: Session, bar: Bar) -> Iterator[Record]:
        raise KeyboardInterrupt
        yield {}

    only = [Benchmark("a", "", interrupted, suite.FAMILIES[0])]
    monkeypatch.setattr(suite, "BENCHMARKS", only)
    assert command.main([*QUICK, "--out", str(tmp_path)]) == command.INTERRUPTED
    assert "interrupted before the first row" in capsys.readouterr().err


# ---- other work --------------------------------------------------------------------------------


def fake_proc(folder: Path, busy: int, idle: int, own: int) -> None:
    (folder / "self").mkdir(parents=True, exist_ok=True)
    (folder / "stat").write_text(f"cpu {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1\n")
    process = folder / str(load.os.getpid())
    (process / "task" / "1").mkdir(parents=True, exist_ok=True)
    (process / "task" / "1" / "children").write_text("7 ")
    (process / "stat").write_text(f"1 (py) thon) S {'0 ' * 10}{own} 0 0 0 0 0")
    (folder / "7").mkdir(exist_ok=True)
    (folder / "7" / "stat").write_text(f"7 (child) S {'0 ' * 10}0 0 {own} 0 0 0")


def test_the_load_of_others_is_what_this_process_and_its_children_did_not_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, 10.1])
    monkeypatch.setattr(load, "PROC", tmp_path)
    monkeypatch.setattr(load.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(load.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(load.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(load.machine, "usable_cores", lambda: 2)
    fake_proc(tmp_path, busy=1000, idle=0, own=100)
    meter = load.Meter()
    fake_proc(tmp_path, busy=2800, idle=200, own=450)  # 1800 in all, 700 of them ours
    assert meter.others() == pytest.approx(1.1)
    assert meter.others() == pytest.approx(1.1)  # too soon to tell


def test_a_row_that_was_measured_beside_other_work_is_marked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    quiet, busy = a_line() | {"other_load": 0.1}, a_line() | {"other_load": 0.9}
    assert labels.time_cell(busy) == f"{labels.time_cell(quiet)} ~"
    terminal.show([quiet], "title", Console(width=80))
    assert terminal.MARKED not in capsys.readouterr().out
    terminal.show([busy], "title", Console(width=80))
    assert terminal.MARKED in capsys.readouterr().out


# ---- a narrow terminal -------------------------------------------------------------------------


def stored_lines() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for path in sorted((ROOT / "bench" / "results").glob("cpu/*/*.jsonl")):
        found[f"{path.parent.name}/{path.stem}"] = stored.read(path)
    return found


LINES = stored_lines()


@pytest.mark.parametrize("name", LINES)
def test_the_tables_fit_eighty_columns(name: str) -> None:
    """Every figure in full: nothing is cut off, no line is longer."""
    records = LINES[name]
    console = Console(width=80, record=True, file=io.StringIO())
    for table in suite.family_of(records[0]).tables(records):
        terminal.print_table(console, table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert records[0]["provider"].split()[0] in text


def test_a_wide_terminal_shows_every_column() -> None:
    (table,) = suite.family_of(a_line()).tables([a_line()])
    assert terminal.fitting(table, Console(width=160)) == [table]
    (narrow,) = terminal.fitting(table, Console(width=76))
    assert set(narrow.heads) < set(table.heads)
    assert "time" in narrow.heads


def test_the_device_that_triton_serves_needs_no_cuda_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = {"cuda": "no nvcc", "cpu": "no compiler"}
    monkeypatch.setattr(command.backends, "why_not", missing.get)
    assert command.missing_backend(torch.device("cuda")) is None  # Triton's kernels are measured
    assert "no compiler" in str(command.missing_backend(torch.device("cpu")))
    missing["triton"] = "no triton"
    assert "no nvcc; backend 'triton': no" in str(command.missing_backend(torch.device("cuda")))
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert "nvcc" not in str(command.missing_backend(torch.device("cuda")))
