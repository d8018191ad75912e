"""The authors' JAX library in the benchmark of the solver: its process, and what it computes."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import __main__ as command
from bench import arguments
from bench.core.session import Record
from bench.solver import jax_peer, measure, methods, models, peers
from bench.solver.methods import Method, Skipped
from tests.bench.solver_tolerances import gradient_error, path_of, stored_error, walked_error
from tests.bench.tiny import TINY

CPU = torch.device("cpu")
STATES = ("float32", "float64")
JAX = next(method for method in peers.PEERS if method.name == "jax revdeq float32")
# An interpreter that has the authors' library; the running one where none is named.
JAX_PYTHON = os.environ.get("BENCH_JAX_PYTHON", sys.executable)
QUICK = ("--quick", "--device", "cpu", "--threads", "1", "--samples", "1", "--only", "peers")


pytestmark = pytest.mark.usefixtures("one_thread")


def read(folder: Path) -> dict[str, Record]:
    lines = (folder / "solve.peers.jsonl").read_text(encoding="utf-8").splitlines()
    return {record["provider"]: record for record in map(json.loads, lines)}


# ---- its process -------------------------------------------------------------------------------

WORKER = """#!{python}
import json, os, pathlib, sys
import numpy
folder = pathlib.Path(sys.argv[2])
problem = json.loads((folder / "problem.json").read_text())
arrays = dict(numpy.load(folder / "problem.npz"))
assert pathlib.Path(sys.argv[1]).name == "jax_worker.py"
assert {{a.dtype.name for a in arrays.values()}} == {{"float32"}}
assert "torch" not in sys.modules
assert problem["threads"] == 1 and problem["device"] == "cpu" and problem["steps"] == 2
{body}
"""
ANSWERS = """
prefix = "parameter "
grads = {n[len(prefix):]: 2 * a for n, a in arrays.items() if n.startswith(prefix)}
numpy.savez(folder / "gradients.npz", **grads)
answer = {"compile_seconds": 1.5, "peak_bytes": 7, "library": problem["state"]}
print(json.dumps(answer), flush=True)
for line in sys.stdin:
    seconds = json.loads(line)["seconds"]
    print(json.dumps({"seconds": 0.25 + seconds, "count": 3}), flush=True)
"""


def fake(folder: Path, body: str) -> str:
    """An interpreter that runs `body` in place of the script that it is given."""
    path = folder / "python"
    path.write_text(WORKER.format(python=sys.executable, body=body), encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def worker(python: str, method: Method = JAX, steps: int = 2) -> jax_peer.Worker:
    model = models.make("mlp", TINY, CPU)
    return jax_peer.Worker(python, method, model, 0.5, steps, CPU, 1)


def test_the_worker_gets_the_problem_and_gives_gradients_and_samples(tmp_path: Path) -> None:
    with worker(fake(tmp_path, ANSWERS)) as process:
        parameters = models.make("mlp", TINY, CPU).parameters
        assert all(map(torch.equal, process.gradients(), [2 * p for p in parameters]))
        assert process.ready == {"compile_seconds": 1.5, "peak_bytes": 7, "library": "float32"}
        racer = jax_peer.Remote(process, JAX)
        racer.warm_up()
        racer.take_sample(lambda calls, count: 0.0, 0.5)
        assert (racer.samples, racer.count) == ([0.75], 3)
    assert process.process.poll() is not None
    assert not process.folder.exists()


def test_what_the_worker_tells_is_in_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("--models", "mlp", "--depths", "2", "--providers", "jax")
    python = fake(tmp_path, ANSWERS)
    assert command.main([*QUICK, *chosen, "--jax-python", python, "--out", str(tmp_path)]) == 0
    records = read(tmp_path)
    for state in ("float32", "float64"):
        record = records[f"jax revdeq {state}"]
        assert record["p50_seconds"] == 0.25 + 0.01
        assert (record["calls_per_sample"], record["peak_bytes"]) == (3, 7)
        assert (record["library"], record["dtypes"]["state"]) == (state, state)
        assert record["ratio_to_loop"] == 0.26 / records["lerp loop"]["p50_seconds"]
        # It is measured, and not taken for granted: this one's gradient is the parameters'.
        assert record["gradient_error"] > 0.1
    assert "jax revdeq float32: compiled in 1.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise MemoryError('too much')", "ended with 1 instead of an answer: MemoryError"),
        ("os.kill(os.getpid(), 9)", "ended with -9 instead of an answer: and printed nothing"),
    ],
)
def test_a_worker_that_ends_is_refused_and_stops_nobody(
    tmp_path: Path, body: str, reason: str
) -> None:
    chosen = ("--models", "mlp", "--depths", "2", "--providers", "jax", "reversible exact")
    python = fake(tmp_path, body)
    assert command.main([*QUICK, *chosen, "--jax-python", python, "--out", str(tmp_path)]) == 1
    records = read(tmp_path)
    assert reason in records["jax revdeq float32"]["refused"]
    assert records["reversible exact"]["p50_seconds"] > 0


def test_a_worker_that_ends_while_it_is_sampled_stops_nobody(tmp_path: Path) -> None:
    """After the warm-up and one sample, and before the second of three rounds."""
    body = ANSWERS.replace("for line in sys.stdin:", "for _, line in zip(range(2), sys.stdin):")
    chosen = ("--models", "mlp", "--depths", "2", "--providers", "jax", "--samples", "3")
    python = fake(tmp_path, body)
    assert command.main([*QUICK, *chosen, "--jax-python", python, "--out", str(tmp_path)]) == 1
    records = read(tmp_path)
    assert "ended with 0 instead of an answer" in records["jax revdeq float64"]["refused"]
    assert "p50_seconds" not in records["jax revdeq float64"]
    assert records["lerp loop"]["samples"] == 3


def test_a_worker_that_does_not_answer_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax_peer, "PATIENCE", 1.0)
    with pytest.raises(RuntimeError, match="ended with -9"):
        worker(fake(tmp_path, "import time; time.sleep(60)"))


def test_an_interpreter_without_the_library_is_skipped(tmp_path: Path) -> None:
    """By the script itself, and the standard library alone."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -I "$@"\n', encoding="utf-8")
    bare.chmod(0o755)
    with pytest.raises(Skipped, match=r"No module named 'numpy'.*github.*--jax-python"):
        worker(str(bare))


def test_a_path_that_is_no_program_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments.parse(["--jax-python", "/nowhere/python"])
    assert "expected the path of a Python interpreter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "state"),
    [
        *((model, state) for model in ("mlp", "block", "language", "cell") for state in STATES),
        # At z = 0 the first relu stands at its kink: a state in float32 comes back beside it.
        ("vision", "float64"),
    ],
)
def test_the_library_itself_has_the_gradient_of_the_solve(model: str, state: str) -> None:
    """So the maps of `jax_worker.py` are those of `maps.py`, with the numbers they were given."""
    dtype = getattr(torch, state)
    method = replace(JAX, state=dtype)
    made = models.make(model, TINY, CPU)
    try:
        started = jax_peer.Worker(JAX_PYTHON, method, made, 0.5, 3, CPU, 1)
    except Skipped as reason:
        pytest.skip(str(reason))
    with started as process:
        path = path_of(made, 0.5, 3)
        stored = stored_error(made, path, 0.5)
        states = walked_error(made, path, 0.5, dtype, stored=stored)
        distance = measure.relative_distance(
            process.gradients(), methods.reference_gradients(made, 0.5, 3)
        )
        assert distance <= gradient_error(made, path, states)
        assert (process.ready["state"], process.ready["platform"]) == (state, "cpu")
        assert process.ready["peak_bytes"] > 0
        seconds, count = process.sample(0.01)
        assert seconds * count >= 0.01
