"""Two runs beside each other: what counts as a change, and what is not compared."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from rich.console import Console

from bench import __main__ as command
from bench import arguments
from bench.core import timing
from bench.core.session import Record
from bench.show import compare


def line(seconds: float = 1.0, spread: float = 1.1, **changes: object) -> Record:
    record: Record = {
        "benchmark": "solver", "part": "cost", "op": "mlp", "provider": "reversible exact",
        "dtypes": {"state": "exact"}, "beta": 0.5, "steps": 8, "elements": 64, "threads": 1,
        "refused": None, "raises": False, "samples": 5, "p20_seconds": seconds / spread**0.5,
        "p50_seconds": seconds, "p80_seconds": seconds * spread**0.5, "peak_bytes": 1000,
        "gradient_error": 1e-7, "load_average": 0.1, "device_name": "A CPU", "commit": "abc",
    }  # fmt: skip
    return record | changes


def marks(old: Record, new: Record) -> list[str]:
    (change,) = compare.changes([old], [new])
    return change.marks()


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (line(1.20), []),  # within 1.1 x 1.1
        (line(1.22), ["slower"]),
        (line(0.83), []),
        (line(0.82), ["faster"]),
        (line(1.22, samples=3), []),  # 1.21 squared
        (line(1.47, samples=3), ["slower"]),
        (line(9.00, samples=2), []),
        (line(peak_bytes=1010), []),
        (line(peak_bytes=1011), ["more memory"]),
        (line(peak_bytes=900), ["less memory"]),
        (line(gradient_error=1.2e-7), []),
        (line(gradient_error=1.3e-7, peak_bytes=1011), ["more memory", "larger error"]),
        (line(gradient_error=0.0), ["smaller error"]),
        (line(raises=True), ["now raises"]),
        (line(2.0, refused="ValueError: no"), ["now fails"]),
    ],
)
def test_what_is_marked(new: Record, expected: list[str]) -> None:
    assert marks(line(), new) == expected


def test_what_was_refused_or_zero_before() -> None:
    assert marks(line(refused="no"), line(5.0)) == ["no longer fails"]
    assert marks(line(refused="no"), line(refused="no")) == []
    assert marks(line(gradient_error=0.0), line()) == ["larger error"]
    assert marks(line(gradient_error=0.0), line(gradient_error=0.0)) == []
    assert marks(line(raises=True), line()) == ["no longer raises"]


def test_on_a_busy_machine_the_yardstick_has_to_be_left_behind() -> None:
    loop = {"provider": "lerp loop", "dtypes": {"state": "float32"}}
    old = [line(**loop), line()]

    def marked(load: float, loop_seconds: float, seconds: float) -> list[list[str]]:
        new = [line(loop_seconds, load_average=load, **loop), line(seconds, load_average=load)]
        return [change.marks() for change in compare.changes(old, new)]

    assert marked(0.1, 1.5, 1.5) == [["slower"], ["slower"]]
    assert marked(2.0, 1.5, 1.5) == [[], []]
    assert marked(2.0, 1.5, 1.5 * 1.22) == [[], ["slower"]]
    assert marked(2.0, 1.5, 0.82) == [[], ["faster"]]
    assert marked(2.0, 0.5, 0.5) == [[], []]
    assert marked(2.0, 0.5, 1.22) == [[], ["slower"]]


def test_other_machines_thread_counts_and_cases_are_not_compared(
    capsys: pytest.CaptureFixture[str],
) -> None:
    others = [line(threads=2), line(device_name="B"), line(steps=4), line(beta=0.8)]
    assert compare.changes(others, [line()]) == []
    console = Console(width=200)
    assert compare.print_changes(console, others[:2], [line()]) is False
    printed = capsys.readouterr().out
    assert "A CPU with threads=2, B with threads=1; new: A CPU with threads=1" in printed
    assert compare.print_changes(console, [line()], [line(3.0), others[2]]) is True
    printed = capsys.readouterr().out
    assert "slower" in printed
    assert "3.00x" in printed
    assert "1 of 1 changed beyond noise" in printed
    assert "1 lines are not compared" in printed


def test_of_equal_lines_the_last_counts() -> None:
    assert marks_of_two([line(9.0), line(1.0)], [line(1.0)]) == [[]]
    assert marks_of_two([line(1.0)], [line(1.0), line(9.0)]) == [["slower"]]


def marks_of_two(old: list[Record], new: list[Record]) -> list[list[str]]:
    return [change.marks() for change in compare.changes(old, new)]


@pytest.mark.parametrize("samples", [3, 4, 5, 9])
def test_chance_marks_one_in_a_hundred(samples: int) -> None:
    """Of times that spread by 5 % and did not change."""
    draw = random.Random(samples)

    def drawn() -> Record:
        times = [math.exp(draw.gauss(0, 0.05)) for _ in range(samples)]
        low, middle, high = (timing.quantile(times, share) for share in (0.2, 0.5, 0.8))
        return line() | {
            "samples": samples, "p20_seconds": low, "p50_seconds": middle, "p80_seconds": high,
        }  # fmt: skip

    runs = 4000
    marked = sum(bool(marks(drawn(), drawn())) for _ in range(runs))
    assert marked / runs < 0.015


TINY = ("--quick", "--device", "cpu", "--threads", "1")


def test_a_run_is_compared_with_the_file_that_it_replaces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = (*TINY, "--sizes-mb", "0.01", "--samples", "1", "--only", "half_step.update_")
    rest = ("--providers", "eager", "--out", str(tmp_path))
    results = tmp_path / "ops.jsonl"
    assert command.main([*chosen, *rest]) == 0
    lines = [json.loads(text) for text in results.read_text(encoding="utf-8").splitlines()]
    slow = dict.fromkeys(("p20_seconds", "p50_seconds", "p80_seconds"), 1000.0)
    old = [json.dumps(record | slow | {"samples": 9, "load_average": 0}) for record in lines]
    results.write_text("\n".join(old), encoding="utf-8")
    capsys.readouterr()
    more = ("--samples", "3", "--compare", str(results))
    assert command.main([*chosen, *rest, *more]) == 0
    assert f"of {len(lines)} changed beyond noise" in capsys.readouterr().out


def test_a_run_of_the_solver_is_compared_with_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = (*TINY, "--samples", "1", "--only", "options", "--models", "mlp", "--depths", "1")
    rest = ("--providers", "save_at", "--out", str(tmp_path))
    assert command.main([*chosen, *rest]) == 0
    assert command.main([*chosen, *rest, "--compare", str(tmp_path)]) == 0
    assert "0 of 2 changed beyond noise" in capsys.readouterr().out
    old = str(tmp_path / "solve.options.jsonl")
    assert compare.main([old, old]) == 0
    assert "1.00x" in capsys.readouterr().out


def test_what_fits_is_compared_and_its_peak_is_not() -> None:
    about = {"part": "largest", "axis": "N", "budget_bytes": 10, "peak_bytes": 9}
    old = {k: v for k, v in line(**about, largest=8).items() if not k.endswith("_seconds")}
    assert marks(old, old | {"peak_bytes": 5}) == []
    assert marks(old, old | {"largest": 9}) == ["fits more"]
    assert marks(old, old | {"largest": 7}) == ["fits less"]
    assert compare.changes([old], [old | {"axis": "batch"}]) == []


def test_a_file_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("none.jsonl", "."):
        with pytest.raises(SystemExit):
            arguments.parse(["--compare", str(tmp_path / name)])
        assert "expected a file of JSON lines" in capsys.readouterr().err
