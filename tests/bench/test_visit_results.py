"""What a visit finds out: each op against the reference, each test; and what is kept of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.visit import keep, report, smoke
from bench.visit.runner import FAILED, PASSED, TIMED_OUT, Result
from bench.visit.smoke import SAME, Task
from revdeq_kernels.core.op import OPS
from revdeq_kernels.core.samples import NUMEL, WHOLE, kinds_of, samples
from tests import ROOT

# ---- every op against the reference ----------------------------------------------------------


def test_the_parts_of_an_op_are_all_of_its_samples() -> None:
    found = smoke.tasks(["cuda", "triton"])
    assert [task.backend for task in found] == sorted(task.backend for task in found)
    for backend in ("cuda", "triton"):
        for name, op in OPS.items():
            parts = [task for task in found if task[:2] == (backend, name)]
            assert [task.part for task in parts] == list(range(parts[0].parts))
            count = len(list(smoke.given(backend, op)))
            assert (parts[0].parts - 1) * smoke.SAMPLES < count <= parts[0].parts * smoke.SAMPLES


@pytest.mark.parametrize(
    ("backend", "op", "sizes"),
    [
        ("cuda", "update_", {NUMEL}),
        ("triton", "update_", {NUMEL, WHOLE}),
        ("triton", "update_.channels", {NUMEL, WHOLE}),
        ("triton", "update_.list", {NUMEL, 1}),
    ],
)
def test_triton_is_asked_in_every_size_that_it_compiles_for(
    backend: str, op: str, sizes: set[int]
) -> None:
    """With every dtype in each; what code a list runs follows from its leaves."""
    given = list(smoke.given(backend, OPS[op]))
    kinds = {kind for args, kw in given for kind in kinds_of(OPS[op], tuple(args), kw)}
    cases = {case for case in OPS[op].dtypes if None not in case}
    assert {(k.dtypes, k.size) for k in kinds} == {(d, n) for d in cases for n in sizes}


def test_a_part_says_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    line = smoke.tried(Task("cpu", "update_exact_", 0, 2))
    assert line["said"] == SAME and line["record"] == "smoke"
    right = OPS["update_"].define
    dtypes = [args[0].dtype for args, _ in islice(samples(OPS["update_"]), 16, 32)]

    def wrong(state: Tensor, *args: Any, **keywords: Any) -> None:
        right(state, *args, **keywords)
        if state.dtype == dtypes[0]:
            state.add_(1)

    monkeypatch.setattr(OPS["update_"], "define", wrong)
    line = smoke.tried(Task("cpu", "update_", 1, 4))
    assert line["said"].startswith("RuntimeError: update_: the cpu kernel on cpu differs from")
    assert (line["part"], line["parts"]) == (1, 4)


# ---- a line for each test --------------------------------------------------------------------

TESTS = """
import time, pytest

@pytest.mark.parametrize(("op", "backend"), [("update_", "cuda"), ("invert_", "triton")])
def test_good(op, backend): pass

def test_bad(): assert 1 == 2

@pytest.mark.skip(reason="no GPU")
def test_skipped(): pass

@pytest.fixture
def broken(): raise OSError("no memory")

def test_in_error(broken): pass
"""


def run_pytest(folder: Path, text: str, *options: str) -> tuple[int, list[dict[str, Any]]]:
    (folder / "test_them.py").write_text(text)
    done = subprocess.run(
        command_of(folder, *options), cwd=folder, env=settings(), capture_output=True, check=False
    )
    return done.returncode, list(report.read_lines(folder / "lines.jsonl"))


def command_of(folder: Path, *options: str) -> list[str]:
    own = ["-p", "bench.visit.record", "--visit-lines", str(folder / "lines.jsonl")]
    where = ["-c", "/dev/null", "--rootdir", str(folder), "-p", "no:cacheprovider", "test_them.py"]
    return [sys.executable, "-m", "pytest", "-q", *own, *options, *where]


def settings() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PATH": "/usr/bin:/bin"}


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "2")], ids=["alone", "xdist"])
def test_each_test_leaves_one_line(options: tuple[str, ...], tmp_path: Path) -> None:
    code, lines = run_pytest(tmp_path, TESTS, *options)
    assert code == 1
    collected = {line["test"]: line for line in lines if line["record"] == "collected"}
    outcomes = {line["test"]: line for line in lines if line["record"] == "outcome"}
    assert collected.keys() == outcomes.keys() and len(lines) == 2 * len(outcomes) == 10
    of = collected["test_them.py::test_good[update_-cuda]"]
    assert (of["op"], of["backend"]) == ("update_", "cuda")
    assert collected["test_them.py::test_bad"]["op"] is None
    said = {name.partition("::")[2]: line["outcome"] for name, line in outcomes.items()}
    assert said == {
        "test_good[update_-cuda]": "passed",
        "test_good[invert_-triton]": "passed",
        "test_bad": "failed",
        "test_skipped": "skipped",
        "test_in_error": "failed",
    }
    assert "assert 1 == 2" in outcomes["test_them.py::test_bad"]["said"]
    assert "no memory" in outcomes["test_them.py::test_in_error"]["said"]


def test_a_run_that_skips_everything_does_not_pass(tmp_path: Path) -> None:
    code, lines = run_pytest(tmp_path, TESTS, "-k", "skipped")
    assert code == 5 and len(lines) == 2
    code, _ = run_pytest(tmp_path, TESTS, "-k", "skipped or good")
    assert code == 0


SPOILING = """
import sys, types, pytest

class Cuda:
    spoiled = False
    is_initialized = staticmethod(lambda: True)

    @classmethod
    def synchronize(cls):
        if cls.spoiled:
            raise RuntimeError("an illegal memory access was encountered")

sys.modules["torch"] = types.SimpleNamespace(cuda=Cuda)

@pytest.mark.parametrize("n", range(8))
def test_it(n):
    if n == 3:
        Cuda.spoiled = True
    Cuda.synchronize()
"""


def test_a_process_whose_gpu_is_lost_is_replaced(tmp_path: Path) -> None:
    """Only the test that lost it fails."""
    code, lines = run_pytest(tmp_path, SPOILING, "-p", "xdist", "-n", "2")
    outcomes = {line["test"]: line["outcome"] for line in lines if line["record"] == "outcome"}
    assert code == 1 and len(outcomes) == 8
    failed = {test for test, outcome in outcomes.items() if outcome == "failed"}
    assert failed == {"test_them.py::test_it[3]"}


def test_a_comparison_is_not_blamed_for_a_gpu_that_another_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lose(*args: Any, **keywords: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(smoke, "_spoiled_by", None)
    monkeypatch.setattr(smoke, "is_spoiled", lambda: True)
    with monkeypatch.context() as patch:
        patch.setattr(OPS["update_"], "define", lose)
        assert "illegal memory access" in smoke.tried(Task("cpu", "update_", 0, 4))["said"]
    line = smoke.tried(Task("cpu", "invert_", 0, 4))
    assert line["said"] == "RuntimeError: not compared, in the process that update_ has spoiled"


def test_a_run_that_is_told_to_end_keeps_its_lines_and_says_what_failed(tmp_path: Path) -> None:
    text = TESTS + "\ndef test_long():\n    time.sleep(60)\n"
    (tmp_path / "test_them.py").write_text(text)
    process = subprocess.Popen(
        command_of(tmp_path), cwd=tmp_path, env=settings(), stdout=subprocess.PIPE, text=True
    )
    lines = tmp_path / "lines.jsonl"
    deadline = time.monotonic() + 60
    while not lines.exists() or lines.read_text().count('"outcome": ') < 5:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 2 and "assert 1 == 2" in said
    assert sum(line["record"] == "outcome" for line in report.read_lines(lines)) == 5


# ---- what is kept ----------------------------------------------------------------------------


def smoke_line(backend: str, op: str, part: int = 0, parts: int = 1, said: str = SAME) -> Any:
    return {
        "record": "smoke", "backend": backend, "op": op, "part": part, "parts": parts, "said": said,
    }  # fmt: skip


def lines_of(backend: str, op: str, *outcomes: str) -> list[Any]:
    """Tests of an op; "" is one that was not run."""
    lines: list[Any] = []
    for k, outcome in enumerate(outcomes):
        name = f"t::{op}-{backend}-{k}"
        lines.append({"record": "collected", "test": name, "op": op, "backend": backend})
        if outcome:
            lines.append({"record": "outcome", "test": name, "outcome": outcome, "said": ""})
    return lines


MACHINE = {"record": "machine", "architecture": "sm_90", "device_name": "NVIDIA H200"}
GOOD = [
    *(MACHINE, smoke_line("cuda", "update_", 0, 2), smoke_line("cuda", "update_", 1, 2)),
    *lines_of("cuda", "update_", "passed", "skipped", "passed"),
    smoke_line("triton", "update_.list"),
    *lines_of("triton", "update_.list", "passed"),
]


@pytest.mark.parametrize(
    ("more", "against"),
    [
        ([], ""),
        ([smoke_line("cuda", "update_", 1, 2, "RuntimeError: differs")], "RuntimeError: differs"),
        (lines_of("cuda", "update_", "", "", "", "failed"), "t::update_-cuda-3 failed"),
        (lines_of("cuda", "update_", "", "", "", ""), "1 of 4 tests were not run"),
        ([smoke_line("cuda", "update_", 0, 3)], "only 2 of 3 parts were compared"),
        (
            [{"record": "step", "step": "memcheck", "outcome": FAILED, "why": "exit 99"}],
            "memcheck: exit 99",
        ),
        (
            [{"record": "step", "step": "memcheck", "outcome": TIMED_OUT, "why": ""}],
            "memcheck: out of time",
        ),
        ([{"record": "step", "step": "memcheck", "outcome": PASSED, "why": ""}], ""),
    ],
)
def test_an_op_is_validated_where_all_that_was_asked_of_it_was_right(
    more: list[Any], against: str
) -> None:
    found = keep.by_op([*GOOD, *more])
    assert found["cuda", "update_"].against() == against
    assert found["triton", "update_.list"].against() == ""
    validated = keep.merged({}, found, "sm_90")
    assert validated["triton", "sm_90"] == {"update_.list"}
    assert (("cuda", "sm_90") in validated) == (not against)


def test_an_op_without_tests_is_not_validated() -> None:
    lines = [MACHINE, smoke_line("cuda", "update_"), *lines_of("cuda", "invert_", "passed")]
    found = keep.by_op(lines)
    assert found["cuda", "update_"].against() == "no test passed"
    assert found["cuda", "invert_"].against() == "only 0 of 1 parts were compared"
    assert keep.by_op([MACHINE, smoke_line("cpu", "update_")]) == {}


def test_what_was_validated_stays_until_it_is_found_wrong() -> None:
    before = {
        ("cuda", "sm_90"): frozenset({"update_", "invert_"}),
        ("cuda", "sm_80"): frozenset("a"),
    }
    not_run = [MACHINE, *lines_of("cuda", "invert_", "")]
    assert keep.merged(before, keep.by_op(not_run), "sm_90") == before
    wrong = [MACHINE, smoke_line("cuda", "invert_", said="ValueError: no")]
    after = keep.merged(before, keep.by_op(wrong), "sm_90")
    assert after == before | {("cuda", "sm_90"): frozenset({"update_"})}


def test_the_table_of_the_package_is_as_it_is_written() -> None:
    assert keep.table_of(keep.existing()) == keep.TABLE.read_text(encoding="utf-8")
    table = {
        ("triton", "sm_90"): frozenset({"b", "a"}),
        ("cuda", "gfx942"): frozenset({"update_.list"}),
    }
    names: dict[str, Any] = {}
    text = keep.table_of(table)
    exec(text, names)
    assert names["VALIDATED"] == table
    assert text.index("gfx942") < text.index('"triton"') and text.index('"a"') < text.index('"b"')
    command = [sys.executable, "-m", "ruff", "format", "--check", "--stdin-filename", "x.py", "-"]
    done = subprocess.run(
        command, input=text, text=True, cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_visit_is_kept(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures of the GPU, and its table; nothing of a dry run."""
    work = tmp_path / "work"
    (work / "measured").mkdir(parents=True)
    machine = MACHINE | {"architecture": "sm_90" if device == "cuda" else None}
    lines = [machine, *GOOD[1:]] if device == "cuda" else [machine]
    (work / "smoke.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure = {"benchmark": "half_step", "device": device, "device_name": "NVIDIA H200 (x)"}
    (work / "measured" / "ops.jsonl").write_text(json.dumps(figure) + "\n")
    for name in ("ops.png", "report.html", "trace.json.gz"):
        (work / "measured" / name).write_text("drawn")
    out = tmp_path / "out"
    out.mkdir()
    for call in ("right", "fast"):
        report.hand_over(call, "a visit", [Result("smoke", PASSED)], work, out)
    monkeypatch.setattr(keep, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(keep, "TABLE", tmp_path / "validated.py")
    monkeypatch.setattr(keep, "existing", dict)
    assert keep.main([out]) == 0
    stored = sorted(path.relative_to(tmp_path) for path in (tmp_path / "results").rglob("*.*"))
    if device == "cpu":
        assert not stored and not (tmp_path / "validated.py").exists()
        return
    names = ["ops.jsonl", "ops.png"]
    assert stored == [Path("results/NVIDIA-H200-x") / name for name in names]
    assert '"update_.list"' in (tmp_path / "validated.py").read_text()
    assert "cuda    update_" in capsys.readouterr().out


def visited(folder: Path, lines: list[Any], figures: str = "") -> Path:
    """What a call `right` with these lines hands over."""
    work, out = folder / "work", folder / "out"
    (work / "measured").mkdir(parents=True)
    out.mkdir()
    (work / "smoke.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (work / "measured" / "ops.jsonl").write_text(figures)
    report.hand_over("right", "a visit", [Result("smoke", PASSED)], work, out)
    return out


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the table of what is validated is written, which holds nothing yet."""
    monkeypatch.setattr(keep, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(keep, "TABLE", tmp_path / "validated.py")
    monkeypatch.setattr(keep, "existing", dict)
    return tmp_path / "validated.py"


def test_calls_on_several_architectures_are_not_taken_for_one(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parts of an op, or its tests, would be counted together."""
    tests = GOOD[:1] + [line for line in GOOD if line["record"] in ("collected", "outcome")]
    parts = [MACHINE | {"architecture": "sm_80"}, *(x for x in GOOD if x["record"] == "smoke")]
    folders = [visited(tmp_path / "a", tests), visited(tmp_path / "b", parts)]
    assert keep.main(folders) == 1
    assert "expected calls on one architecture, got sm_80, sm_90" in capsys.readouterr().out
    assert not table.exists()


@pytest.mark.parametrize("where", [[MACHINE | {"architecture": None}], []])
def test_a_dry_run_adds_nothing_to_a_visit(where: list[Any], tmp_path: Path, table: Path) -> None:
    """Nor does a call that does not say where it ran."""
    tests = ("collected", "outcome")
    visit = [line for line in GOOD if line["record"] != "outcome"]
    dry = [*where, *(line for line in GOOD if line["record"] in tests)]
    assert keep.main([visited(tmp_path / "a", visit), visited(tmp_path / "b", dry)]) == 0
    assert "update_" not in table.read_text()
    assert keep.main([visited(tmp_path / "c", GOOD)]) == 0
    assert "update_" in table.read_text()


def test_an_archive_that_was_cut_off_is_named_and_left_out(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = visited(tmp_path / "a", GOOD) / "right.tar.gz"
    whole = archive.read_bytes()
    for length in (0, 5, len(whole) // 2):
        archive.write_bytes(whole[:length])
        assert keep.main([archive.parent]) == 1
        assert f"{archive}: cannot be read" in capsys.readouterr().out
        assert not table.exists()


def test_figures_of_which_nothing_was_written_are_left_out(tmp_path: Path, table: Path) -> None:
    assert keep.main([visited(tmp_path / "a", GOOD)]) == 0
    assert not (tmp_path / "results").exists() and table.exists()


def test_a_folder_without_a_visit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keep.main([tmp_path]) == 1
    assert "expected right.tar.gz, fast.tar.gz in" in capsys.readouterr().out


def test_a_kernel_is_asked_on_the_device_of_its_backend() -> None:
    assert smoke.about(["cpu"])["architecture"] is None
    assert smoke.about(["cpu"])["torch"] == torch.__version__
