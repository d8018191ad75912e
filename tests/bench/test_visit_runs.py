"""A visit to a GPU: how its steps run and end, what is handed over, and the command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.visit import __main__ as visit
from bench.visit import report, runner
from bench.visit.runner import FAILED, PASSED, SKIPPED, TIMED_OUT, Result
from bench.visit.steps import CALLS, Call, Place, Step
from tests import ROOT

# ---- how steps are run -----------------------------------------------------------------------


def python(name: str, code: str, limit: int = 30, **options: object) -> Step:
    """A step that is a little program."""
    command = [sys.executable, "-c", code]
    return Step(name, 1, limit, f"about {name}", lambda at: command, **options)  # type: ignore[arg-type]


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
while True:
    time.sleep(1)
"""
POLITE = """
import signal, time
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("what there was")
"""


def test_a_step_that_fails_or_hangs_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "GRACE", 2.0)
    monkeypatch.setattr(runner, "LEAST", 1.0)
    monkeypatch.setattr(runner, "HAND_OVER", 1.0)
    call = Call(
        60,
        (
            python("stubborn", STUBBORN, 5),
            python("polite", POLITE, 5),
            python("lacking", "", 1, programs=("no-such-program",), modules=("no_such_module",)),
            python("bad", "raise SystemExit(7)", 10, codes={7: "lucky"}),
            python("good", "print('good')", 10),
        ),
    )
    after: list[int] = []
    begin = time.monotonic()
    seconds = sum(step.limit for step in call.steps) + runner.HAND_OVER
    monkeypatch.setattr(runner, "environment", lambda place: dict(os.environ))
    place = Place(True, tmp_path)
    found = runner.run(call, place, seconds, begin, lambda results: after.append(len(results)))
    assert time.monotonic() - begin < seconds
    outcomes = [TIMED_OUT, TIMED_OUT, SKIPPED, FAILED, PASSED]
    assert [result.outcome for result in found] == outcomes
    assert found[2].why == "needs no-such-program, no_such_module"
    assert found[3].why == "exit 7; lucky"
    assert after == [1, 2, 3, 4, 5]
    assert (tmp_path / "polite.log").read_text() == "what there was\n"
    child, told = (tmp_path / "stubborn.log").read_text().split()
    assert told == "told" and not is_alive(int(child))


SLEEPER = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""
TOLD_TO_END = f"""
import sys
from pathlib import Path
from bench.visit import __main__ as visit
from bench.visit.steps import CALLS, Call, Step
visit.WORK = Path(sys.argv[1]) / "work"
step = Step("sleeper", 1, 30, "sleeps", lambda at: [sys.executable, "-c", {SLEEPER!r}])
CALLS["right"] = Call(100, (step, step))
sys.exit(visit.main(["right", "--dry-run", "--out", sys.argv[1]]))
"""


def test_a_call_that_is_told_to_end_leaves_no_process_and_hands_over(tmp_path: Path) -> None:
    """As by ``timeout``, or by whoever lends the machine."""
    log = tmp_path / "work" / "right" / "sleeper.log"
    command = [sys.executable, "-c", TOLD_TO_END, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (log.exists() and len(log.read_text().split()) == 2):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.terminate()
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert not any(is_alive(int(pid)) for pid in log.read_text().split())
    assert re.search(r"^sleeper +interrupted", (tmp_path / "right.txt").read_text(), re.M)
    assert said.count("sleeper: sleeps") == 1  # and the second step was not begun


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(visit, "WORK", tmp_path / "work")
    file, taken = tmp_path / "file", tmp_path / "taken"
    file.write_text("")
    (taken / "right.txt").mkdir(parents=True)
    for out in (file, taken):
        assert visit.main(["right", "--dry-run", "--only", "build", "--out", str(out)]) == 2
        said = capsys.readouterr().out
        assert said.startswith("--out: expected a folder that can be written to")
        assert "build" not in said


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not waited for does not."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def test_a_step_gets_what_earlier_ones_left_and_nothing_of_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(step: Step, place: Place, allowed: float) -> int:
        now[0] += 10.0
        return 0

    now = [100.0]
    monkeypatch.setattr(runner, "execute", execute)
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])
    call = Call(100, tuple(python(name, "", 30) for name in "abc"))
    found = runner.run(call, Place(False, tmp_path), 100.0, 100.0)
    assert [result.allowed for result in found] == [30.0, 50.0, 70.0]
    now[0] = 100.0
    late = runner.run(call, Place(False, tmp_path), 100.0, 30.0)
    assert [result.outcome for result in late] == [SKIPPED, SKIPPED, PASSED]
    assert late[0].why == "no time was left" and late[2].allowed == 20.0


def test_a_step_sees_this_tree_before_what_was_carried_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/carried")
    found = runner.environment(Place(True, tmp_path))
    assert found["PYTHONPATH"].split(":") == [str(ROOT), str(ROOT / "python"), "/carried"]
    monkeypatch.delenv("PYTHONPATH")
    found = runner.environment(Place(True, tmp_path))
    assert found["PYTHONPATH"].split(":") == [str(ROOT), str(ROOT / "python")]


# ---- what is handed over ---------------------------------------------------------------------


def test_a_summary_says_what_came_of_each_step(tmp_path: Path) -> None:
    lines = [
        {"record": "collected", "test": "t::a"},
        {"record": "collected", "test": "t::b"},
        {"record": "collected", "test": "t::c"},
        {"record": "outcome", "test": "t::a", "outcome": "passed", "said": ""},
        {"record": "outcome", "test": "t::b", "outcome": "failed", "said": "long\nE other bits"},
    ]
    write(tmp_path / "tests.jsonl", lines)
    (tmp_path / "tests.log").write_text("\n".join(f"line {k}" for k in range(50)))
    said = ["same bits", "same bits", "RuntimeError: differs"]
    smoke = [{"record": "smoke", "backend": "cuda", "op": "update_", "said": s} for s in said]
    write(tmp_path / "smoke.jsonl", smoke)
    results = [
        Result("build", PASSED, 25.2, 60.0),
        Result("smoke", FAILED, 40.0, 60.0, "exit 1"),
        Result("tests", TIMED_OUT, 170.0, 170.0),
        Result("memcheck", SKIPPED, why="needs compute-sanitizer"),
    ]
    out = tmp_path / "out"
    out.mkdir()
    text = report.hand_over("right", "right, on a GPU: 1 of 2 s", results, tmp_path, out)
    shown = text.splitlines()
    assert shown[:7] == [
        "right, on a GPU: 1 of 2 s",
        "",
        "step        outcome        seconds    of",
        "build       passed              25    60",
        "smoke       failed              40    60  2 right, 1 wrong; exit 1",
        "tests       out of time        170   170  1 passed, 1 failed, 1 not run",
        "memcheck    skipped              0     0  needs compute-sanitizer",
    ]
    assert "cuda update_: RuntimeError: differs" in shown
    assert "t::b: E other bits" in shown
    assert shown[-1] == "line 49" and "line 38" in shown and "line 37" not in shown
    assert (out / "right.txt").read_text() == text
    found = list(report.read_lines(out / "right.jsonl"))
    assert len(found) == len(lines) + len(smoke) + len(results)
    assert [r["outcome"] for r in found if r["record"] == "step"] == [r.outcome for r in results]


def write(path: Path, lines: Sequence[object]) -> None:
    """A file of JSON lines whose last was cut off."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"record": "outc')


def test_an_archive_stays_whole_while_the_next_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, archive = tmp_path / "work", tmp_path / "right.tar.gz"
    work.mkdir()
    (work / "a.log").write_text("first")
    report.pack(work, archive)
    whole = archive.read_bytes()

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report.tarfile.TarFile, "addfile", killed)
    with pytest.raises(KeyboardInterrupt):
        report.pack(work, archive)
    assert archive.read_bytes() == whole


def test_an_archive_is_small_whatever_was_written(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "measured").mkdir(parents=True)
    (work / "long.log").write_bytes(b"first\n" + os.urandom(3 * 2**20) + b"\nlast\n")
    (work / "measured" / "trace.json.gz").write_bytes(os.urandom(5 * 2**20))
    (work / "measured" / "ops.jsonl").write_text("{}\n")
    archive = tmp_path / "right.tar.gz"
    report.pack(work, archive)
    assert archive.stat().st_size < 2**20
    with tarfile.open(archive) as tar:
        names = ["long.log", "measured/ops.jsonl", "measured/trace.json.gz"]
        assert tar.getnames() == names
        files = [tar.extractfile(name) for name in names]
        log, lines, trace = (file.read() for file in files if file is not None)
    assert log.startswith(b"first\n") and log.endswith(b"\nlast\n") and b"left out" in log
    assert lines == b"{}\n" and trace == b"5242880 bytes: left where it was\n"


# ---- the command -----------------------------------------------------------------------------


def campaign(*given: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "bench" / "campaign.sh"), *given]
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_campaign_lists_its_steps_without_torch() -> None:
    done = campaign("list")
    assert done.returncode == 0, done.stderr
    for step in (step for call in CALLS.values() for step in call.steps):
        assert re.search(
            rf"^  {step.name} +{step.expected} s expected, +{step.limit} s", done.stdout, re.M
        )
    code = "import sys; import bench.visit.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    "given", [(), ("deploy",), ("right", "--fast"), ("right", "--only", "ops")]
)
def test_campaign_refuses_what_it_does_not_know(
    given: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        visit.parse(given)
    said = capsys.readouterr().err
    assert said.startswith("bench/campaign.sh") and said.endswith("; --help lists the options\n")


def test_one_step_in_small_is_handed_over(tmp_path: Path) -> None:
    assert visit.main(["right", "--dry-run", "--only", "build", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(report.files_of("right"))
    text = (tmp_path / "right.txt").read_text()
    assert text.startswith("right, in small on a CPU: ") and "build       passed" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_a_dry_run_goes_through_every_step(name: str, tmp_path: Path) -> None:
    """On the CPU, with its backend; a busy one is given three times the seconds of a GPU."""
    seconds = 3 * CALLS[name].seconds
    done = campaign(name, "--dry-run", "--seconds", str(seconds), "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    files = [tmp_path / file for file in report.files_of(name)]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(0 < file.stat().st_size < 2**20 for file in files)
    lines = list(report.read_lines(files[1]))
    outcomes = {line["step"]: line["outcome"] for line in lines if line.get("record") == "step"}
    assert outcomes == {step.name: PASSED for step in CALLS[name].steps}
    spent = re.match(rf"{name}, in small on a CPU: (\d+) of {seconds} s\n", files[0].read_text())
    assert spent is not None and int(spent[1]) <= seconds
    if name == "right":
        said = {line["said"] for line in lines if line.get("record") == "smoke"}
        assert said == {"same bits"}
        tests = [line for line in lines if line.get("record") == "outcome"]
        assert len(tests) > 50 and {line["outcome"] for line in tests} == {"passed"}
    else:
        figures = {line["benchmark"] for line in lines if "benchmark" in line}
        assert figures == {"ceilings", "half_step", "cell", "solver", "nsight"}
