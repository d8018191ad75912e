"""The steps of a visit: two calls, the most valuable first in each.

The first asks whether all of it is right, the second how fast it is. A row says how long a step
should take on an H200 with 16 cores, which is an estimate, and how long it may; `right` is to fit
430 seconds and `fast` 300. Every command has a small form for a CPU, which a dry run executes.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 14
"""Of 16 cores; each holds a CUDA context."""

SANITIZER_CODE = 99
"""What compute-sanitizer ends with where it found something; pytest's own codes are 0 to 5."""

GPU_TESTS = (
    "tests/solver/test_cuda.py",
    "tests/cell/test_cuda.py",
    "tests/ops/test_devices.py",
    "tests/ops/test_cuda_runtime.py",
)
"""The files that hold tests for a GPU: every process would have to read all the others as well."""


@dataclass(frozen=True)
class Place:
    """Where a visit runs, and the folder of its logs: on a GPU, or all of it in small on a CPU."""

    on_gpu: bool
    work: Path
    python: str = sys.executable

    @property
    def device(self) -> str:
        """As torch names it."""
        return "cuda" if self.on_gpu else "cpu"


Command = Callable[[Place], list[str]]


@dataclass(frozen=True)
class Step:
    """One step: its command, the seconds that it should take and may take, what it cannot lack.

    `programs` and `modules` are needed on a GPU; `better_with` are modules that only make it
    faster. `codes` says what exit codes mean besides 0.
    """

    name: str
    expected: int
    limit: int
    about: str
    command: Command
    programs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    better_with: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    codes: Mapping[int, str] = field(default_factory=dict)

    def lacks(self) -> list[str]:
        """The programs and modules that it needs and are not here."""
        programs = [name for name in self.programs if program(name) is None]
        return programs + [name for name in self.modules if not is_installed(name)]

    def notes(self) -> list[str]:
        """What it does without, and what comes of it."""
        return [
            f"without {name}: {what}"
            for name, what in self.better_with.items()
            if not is_installed(name)
        ]


@dataclass(frozen=True)
class Call:
    """Some steps that are run by one command, and the seconds that it has."""

    seconds: int
    steps: tuple[Step, ...]


def program(name: str) -> str | None:
    """Where a program is: on the path, or with CUDA."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *cuda_folders()]))


def cuda_folders() -> list[str]:
    """Where nvcc, ncu and compute-sanitizer lie if they are not on the path."""
    return [f"{home}/bin" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]


def is_installed(module: str) -> bool:
    """Whether Python finds a module."""
    return importlib.util.find_spec(module) is not None


# ---- what is run -----------------------------------------------------------------------------


def _module(name: str, *options: str) -> Command:
    return lambda at: [at.python, "-m", name, *options]


def _build(at: Place) -> list[str]:
    return [at.python, "-m", "bench.visit.build", *([] if at.on_gpu else ["--plan"])]


def _smoke(at: Place) -> list[str]:
    backends = ["cuda", "triton"] if at.on_gpu else ["cpu"]
    processes = PROCESSES if at.on_gpu else 2
    return [
        *(at.python, "-m", "bench.visit.smoke", "--lines", str(at.work / "smoke.jsonl")),
        *("--processes", str(processes), "--backends", *backends),
    ]


def _pytest(
    name: str, on_gpu: tuple[str, ...], small: tuple[str, ...], *, processes: int = 1
) -> Command:
    """pytest with these arguments; with none of the plugins that a machine happens to have."""

    def command(at: Place) -> list[str]:
        plugins = ["no:cacheprovider", "bench.visit.record"]
        options = ["--visit-lines", str(at.work / f"{name}.jsonl")]
        if processes > 1 and is_installed("xdist"):
            plugins.append("xdist")
            count = processes if at.on_gpu else 2
            options += ["-n", str(count), "--dist", "worksteal", "--max-worker-restart", "14"]
        if is_installed("pytest_timeout"):
            plugins.append("timeout")
            options += ["--timeout", "100", "--timeout-method", "thread"]
        marks = "gpu" if at.on_gpu else "not gpu and not slow and not nightly"
        loaded = [word for plugin in plugins for word in ("-p", plugin)]
        chosen = on_gpu if at.on_gpu else small
        return [at.python, "-m", "pytest", "-q", *loaded, *options, "-m", marks, *chosen]

    return command


def _sanitized(tool: str, tests: Command) -> Command:
    """The same under compute-sanitizer; on a CPU without it."""

    def command(at: Place) -> list[str]:
        if not at.on_gpu:
            return tests(at)
        sanitizer = program("compute-sanitizer") or "compute-sanitizer"
        code = str(SANITIZER_CODE)
        options = ["--tool", tool, "--target-processes", "all", "--error-exitcode", code]
        return [sanitizer, *options, *tests(at)]

    return command


def _bench(on_gpu: tuple[str, ...], small: tuple[str, ...]) -> Command:
    def command(at: Place) -> list[str]:
        tier = [] if at.on_gpu else ["--quick", "--threads", "1"]
        where = ["--device", at.device, "--out", str(at.work / "measured"), "--append"]
        return [at.python, "-m", "bench", *where, *tier, *(on_gpu if at.on_gpu else small)]

    return command


# ---- the table -------------------------------------------------------------------------------

_BUILD_MODULES = ("torch", "setuptools", "ninja")
_TEST_MODULES = ("torch", "pytest", "hypothesis")
_BENCH_MODULES = ("torch", "rich", "matplotlib", "markdown_it")
_SERIAL = {"xdist": "one test after another, as far as the limit allows"}
_DEVICES = "tests/ops/test_devices.py"
_FOUND = {SANITIZER_CODE: "compute-sanitizer found errors", 5: "no test was found"}
# Without torch's caching each tensor is an allocation of its own: an access past its end is seen.
_NO_CACHING = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

RIGHT = Call(
    430,
    (
        Step(
            *("build", 25, 45, "compile in place, for the architecture of this card alone"),
            _build,
            programs=("nvcc", "g++"),
            modules=_BUILD_MODULES,
        ),
        Step(
            *("info", 8, 15, "what was built and what can run"),
            _module("revdeq_kernels.info"),
            modules=("torch",),
        ),
        Step(
            *("smoke", 60, 75, "every op in every type against the reference, CUDA and Triton"),
            _smoke,
            modules=("torch",),
        ),
        Step(
            *("tests", 150, 165, "the gpu tests, without the large tensors"),
            _pytest(
                "tests",
                ("-k", "not large", "--maxfail", "80", *GPU_TESTS),
                ("-k", "cpu-cpu and update_ and not large and not float_types", _DEVICES),
                processes=PROCESSES,
            ),
            modules=_TEST_MODULES,
            better_with=_SERIAL,
            codes=_FOUND,
        ),
        Step(
            *("large", 25, 35, "tensors of more than 2^31 elements, CUDA"),
            _pytest("large", ("-k", "large and not triton", _DEVICES), ("-k", "large", _DEVICES)),
            modules=_TEST_MODULES,
            codes=_FOUND,
        ),
        Step(
            *("memcheck", 75, 80, "the C++ kernels under compute-sanitizer"),
            _sanitized(
                "memcheck",
                _pytest(
                    "memcheck",
                    ("-k", "sanitize and not triton", _DEVICES),
                    ("-k", "cpu-cpu and invert_ and not large and not float_types", _DEVICES),
                ),
            ),
            programs=("compute-sanitizer",),
            modules=_TEST_MODULES,
            environment=_NO_CACHING,
            codes=_FOUND,
        ),
    ),
)
"""Is it right?"""

FAST = Call(
    300,
    (
        Step(
            *("build", 3, 30, "as in the first call, if this is another machine"),
            _build,
            programs=("nvcc", "g++"),
            modules=_BUILD_MODULES,
        ),
        Step(
            *("ceilings", 10, 12, "a copy and a matmul"),
            _bench(("--only", "ceilings"), ("--only", "ceilings", "--samples", "1")),
            modules=_BENCH_MODULES,
        ),
        Step(
            *("ops", 60, 62, "every op at 256 MiB, and eager PyTorch"),
            _bench(
                (
                    *("--only", "ops", "--sizes-mb", "256", "--samples", "3"),
                    *("--providers", "revdeq", "lerp_", "eager"),
                ),
                (
                    *("--only", "half_step.update_", "--sizes-mb", "0.01", "--samples", "1"),
                    *("--providers", "revdeq cpu", "lerp_"),
                ),
            ),
            modules=_BENCH_MODULES,
        ),
        Step(
            *("cell", 55, 58, "the equilibrium cell, at few and many rows"),
            _bench(
                (
                    *("--only", "cell", "--features", "64", "128", "--rows", "4096", "131072"),
                    *("--providers", "eager", "composite", "solve", "triton", "gluon"),
                ),
                ("--only", "cell", "--samples", "1", "--providers", "eager", "composite"),
            ),
            modules=_BENCH_MODULES,
        ),
        Step(
            *("cost", 55, 58, "a training step of N = 8, and its peers"),
            _bench(
                (
                    *("--only", "solve.cost", "--models", "block", "mlp"),
                    *("--betas", "0.5", "--depths", "8"),
                ),
                (
                    *("--only", "solve.cost", "--models", "mlp", "--depths", "2"),
                    *("--samples", "1", "--providers", "reversible"),
                ),
            ),
            modules=_BENCH_MODULES,
        ),
        Step(
            *("nsight", 40, 40, "the hot kernels by Nsight Compute"),
            _bench(("--only", "nsight"), ("--only", "nsight")),
            programs=("ncu",),
            modules=_BENCH_MODULES,
        ),
        Step(
            *("racecheck", 30, 30, "the shared memory of the Gluon cells"),
            _sanitized(
                "racecheck",
                _pytest(
                    "racecheck",
                    ("-k", "sanitize and gluon and exact", "tests/cell/test_cuda.py"),
                    ("-k", "trial", "tests/cell/test_choice.py"),
                ),
            ),
            programs=("compute-sanitizer",),
            modules=_TEST_MODULES,
            codes=_FOUND,
        ),
    ),
)
"""How fast is it?"""

CALLS = {"right": RIGHT, "fast": FAST}
