"""The authors' JAX library in a process of its own: `jax_worker.py`, seen from the benchmark.

The process runs under another interpreter, and takes its samples in turn with the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy
import torch
from torch import Tensor

from bench.core import timing
from bench.core.case import Provider
from bench.solver.methods import Method, Skipped
from bench.solver.models import Model

SCRIPT = Path(__file__).with_name("jax_worker.py")
SOURCE = "https://github.com/sammccallum/revdeq"
# Seconds for one answer. The first one waits for compilation.
PATIENCE = 600.0


class Worker:
    """One problem: its gradients, what compilation says of it, and samples of its time."""

    def __init__(
        self,
        python: str,
        method: Method,
        model: Model,
        beta: float,
        steps: int,
        device: torch.device,
        threads: int | None,
    ) -> None:
        """Start the process and wait until it has compiled and computed the gradients.

        Raises `Skipped` where the interpreter has no such library.
        """
        self.python, self.model = python, model
        self.stack = contextlib.ExitStack()
        with contextlib.ExitStack() as failing:
            failing.push(self.stack)
            self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
            self.process = self._started(_problem(method, model, beta, steps, device, threads))
            self.ready = self._answer()
            failing.pop_all()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stack.close()

    def _started(self, problem: dict[str, Any]) -> subprocess.Popen[str]:
        tensors = {f"parameter {name}": p for name, p in self.model.f.named_parameters()}
        tensors |= {name: getattr(self.model, name) for name in ("z0", "x", "cotangent")}
        arrays: dict[str, Any] = {n: t.detach().cpu().numpy() for n, t in tensors.items()}
        numpy.savez(self.folder / "problem.npz", **arrays)
        (self.folder / "problem.json").write_text(json.dumps(problem), encoding="utf-8")
        printed = self.stack.enter_context((self.folder / "printed").open("w", encoding="utf-8"))
        process = subprocess.Popen(
            [self.python, str(SCRIPT), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            text=True,
            # Files next to the script have names that other packages may import.
            env=os.environ | {"PYTHONSAFEPATH": "1"},
        )
        self.stack.callback(_ended, process)
        return process

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        watch = threading.Timer(PATIENCE, self.process.kill)
        watch.start()
        try:
            line = self.process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            code = self.process.wait()
            printed = (self.folder / "printed").read_text(encoding="utf-8").strip().splitlines()
            reason = printed[-1] if printed else "and printed nothing"
            raise RuntimeError(f"the process ended with {code} instead of an answer: {reason}")
        answer = json.loads(line)
        if "skipped" in answer:
            raise Skipped(
                f"{self.python} cannot import what it takes ({answer['skipped']}). To have it: "
                f"git clone {SOURCE}, `pip install ./revdeq` into a Python that it supports, and "
                "name that one with --jax-python"
            )
        return answer

    def gradients(self) -> Sequence[Tensor]:
        """Those of the parameters, in the model's order."""
        names = [name for name, _ in self.model.f.named_parameters()]
        device = self.model.z0.device
        with numpy.load(self.folder / "gradients.npz") as stored:
            return [torch.from_numpy(stored[name]).to(device) for name in names]

    def sample(self, minimum: float) -> tuple[float, int]:
        """Seconds per call of a loop that lasted `minimum` or more, and its number of calls."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # an ended process is told of by `_answer`
            print(json.dumps({"seconds": minimum}), file=self.process.stdin, flush=True)
        answer = self._answer()
        return answer["seconds"], answer["count"]


def _ended(process: subprocess.Popen[str]) -> None:
    """Ask the process to end, and see that it does."""
    try:
        process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _problem(
    method: Method,
    model: Model,
    beta: float,
    steps: int,
    device: torch.device,
    threads: int | None,
) -> dict[str, Any]:
    return {
        "model": model.name,
        "heads": getattr(model.f, "heads", None),
        "groups": getattr(model.f, "groups", None),
        "state": str(method.state).removeprefix("torch."),
        "beta": beta,
        "steps": steps,
        "device": device.type,
        "index": device.index or 0,
        "threads": threads,
    }


class Remote(timing.Contender):
    """The worker in a race: it holds the stop-watch itself, so that no message is in the time."""

    def __init__(self, worker: Worker, method: Method) -> None:
        def bind(tensors: object) -> Any:
            raise AssertionError("unreachable: the process is sampled as a whole")

        super().__init__(Provider(method.name, method.kind, bind, expected=bind), [])
        self.worker = worker

    def warm_up(self) -> None:
        """One call."""
        self._sampled(0.0)

    def take_sample(self, clock: timing.Clock, minimum: float) -> None:
        """By the worker's clock; torch's, which is passed, cannot see the other process."""
        self.samples.append(self._sampled(minimum))

    def _sampled(self, minimum: float) -> float:
        """Seconds per call; RuntimeError where the process has ended."""
        seconds, self.count = self.worker.sample(minimum)
        return seconds
