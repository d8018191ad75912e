"""Imports in fresh processes: with REVDEQ_BACKEND set, with parts missing; the info report."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import revdeq_kernels as rk
from tests import ROOT

CALL = """
import torch
import revdeq_kernels as rk
state = torch.ones(3)
try:
    print("ran", rk.update_(state, torch.zeros(3), 0.5).tolist(), rk.backends.select("cpu"))
except Exception as error:
    print(type(error).__name__, error, state.tolist())
"""

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
"""


def run(code: str, folder: Path = ROOT, **environment: str) -> str:
    """What the program prints in a fresh interpreter, where it must not fail.

    The packages are those in `folder`.
    """
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "REVDEQ_BACKEND")}
    if folder != ROOT:
        kept["PYTHONPATH"] = ""  # a path of the tests that leads to the built package
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def unbuilt(tmp_path: Path) -> Path:
    """A folder with the packages as git has them: nothing is built in it."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for package in (ROOT / "revdeq_kernels", ROOT / "python" / "torch_revdeq"):
        shutil.copytree(package, tmp_path / package.name, ignore=ignored)
    return tmp_path


# ---- REVDEQ_BACKEND --------------------------------------------------------------------------


ENVIRONMENTS = ("reference", "cpu", "", "gpu", "triton")

IN_EACH = f"""
import os, torch
for name in {ENVIRONMENTS!r}:
    if os.fork() == 0:
        os.environ["REVDEQ_BACKEND"] = name
        exec({CALL!r})
        print(end="--", flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """What CALL prints, by REVDEQ_BACKEND: each in a process that has imported torch alone."""
    *outputs, rest = run(IN_EACH).split("--")
    assert not rest
    return dict(zip(ENVIRONMENTS, outputs, strict=True))


@pytest.mark.parametrize("name", ["reference", "cpu", ""])
def test_the_environment_chooses(name: str, printed: dict[str, str]) -> None:
    assert printed[name] == f"ran [0.5, 0.5, 0.5] {name or 'cpu'}\n"


def test_the_environment_names_no_backend(printed: dict[str, str]) -> None:
    assert printed["gpu"] == (
        "ValueError REVDEQ_BACKEND: expected one of cuda, cpu, triton, reference, got 'gpu' "
        "[1.0, 1.0, 1.0]\n"
    )


def test_the_environment_names_a_backend_that_cannot_run(printed: dict[str, str]) -> None:
    """Triton without its interpreter takes no CPU tensors, on any machine."""
    text = printed["triton"]
    assert text.startswith("RuntimeError backend 'triton' cannot run for cpu tensors: Triton")
    assert "TRITON_INTERPRET=1" in text
    assert text.endswith("available: cpu, reference [1.0, 1.0, 1.0]\n")


# ---- what is missing -------------------------------------------------------------------------

EVERY_OP = """
import torch
import revdeq_kernels as rk
f = torch.ones(40)
flag = torch.zeros(1, dtype=torch.int32)
digits = torch.zeros(rk.digit_bytes(40, 0.8), dtype=torch.uint8)
with rk.backend("reference"):
    rk.invert_(rk.update_(torch.ones(40), f, 0.5), f, 0.5)
    y = rk.quantize(f, 16, flag=flag)
    rk.invert_exact_(rk.update_exact_(y, digits, flag, f, 0.8, 16, 1), digits, f, 0.8, 16, 1)
    print("back", torch.equal(rk.dequantize(y, 16), f), flag.item())
print("able", rk.available_backends("cpu"))
for name in ("cpu", "cuda", "triton"):
    try:
        with rk.backend(name):
            print("entered", name)
    except RuntimeError as error:
        print(error)
from revdeq_kernels import info
print(info.report())
"""


def test_without_the_compiled_extension(unbuilt: Path) -> None:
    """As in a checkout that was never built, or on a system where nothing is compiled."""
    catch = "import warnings\nwarnings.showwarning = lambda m, c, *_: print(c.__name__, m)\n"
    printed = run(catch + EVERY_OP + CALL, unbuilt)
    assert "back True 0\nable ['reference']\n" in printed
    for name in ("cpu", "cuda"):
        reason = "cannot run: the package was installed without its compiled extension"
        assert f"backend '{name}' {reason}" in printed
    assert "build it: pip install ." in printed
    assert "build: the package was installed without its compiled extension" in printed
    warning, last = printed.splitlines()[-2:]
    assert warning.startswith("UserWarning revdeq_kernels: 'cpu', the default backend for cpu")
    assert "'reference' runs, with the same bits, slowly; REVDEQ_BACKEND=reference" in warning
    assert last == "ran [0.5, 0.5, 0.5] reference"


def test_the_source_tree_that_hides_the_installed_package_is_named(
    unbuilt: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As after `pip install .`, where Python is started in the clone."""
    site = tmp_path_factory.mktemp("site-packages")
    (site / "revdeq_kernels").mkdir()
    (site / "revdeq_kernels" / "librevdeq_cpu.so").touch()
    catch = "import warnings\nwarnings.showwarning = lambda m, c, *_: print(c.__name__, m)\n"
    printed = run(catch + CALL, unbuilt, PYTHONPATH=str(site))
    assert (
        f"you are importing the source tree in {unbuilt / 'revdeq_kernels'}, which hides the "
        f"installed package in {site / 'revdeq_kernels'}: run Python from another directory or "
        "use `pip install -e .`"
    ) in printed
    assert printed.splitlines()[-1] == "ran [0.5, 0.5, 0.5] reference"
    assert "hides" not in run(catch + CALL, unbuilt)


def test_an_extension_that_does_not_load_is_not_replaced(unbuilt: Path) -> None:
    """It was installed, and something is wrong with it: no other backend takes its place."""
    library = unbuilt / "revdeq_kernels" / "librevdeq_cpu.so"
    library.write_text("no library")
    printed = run(EVERY_OP + CALL, unbuilt)
    assert "back True 0\nable ['reference']\n" in printed
    assert f"the compiled extension did not load ({library}: file too short); build" in printed
    last = printed.splitlines()[-1]
    assert last.startswith("RuntimeError backend 'cpu' cannot run for cpu tensors: the compiled")
    assert last.endswith("available: reference [1.0, 1.0, 1.0]")


SOLVE = """
import torch
from torch import nn
from torch_revdeq.testing import assert_exact_gradients
f = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
for adjoint in ("reversible", "hooks", "checkpoint"):
    print(adjoint, assert_exact_gradients(f, torch.zeros(4, 8), adjoint=adjoint).state)
"""


def test_the_solver_without_the_compiled_extension(unbuilt: Path) -> None:
    printed = run("import warnings\nwarnings.simplefilter('ignore')\n" + SOLVE, unbuilt)
    assert printed == "reversible exact\nhooks exact\ncheckpoint exact\n"


def test_without_triton() -> None:
    printed = run(WITHOUT_TRITON + EVERY_OP + CALL)
    assert "back True 0\nable ['cpu', 'reference']\nentered cpu\n" in printed
    assert "backend 'triton' cannot run: triton is not installed or too old" in printed
    assert "pip install 'triton>=3.6'" in printed
    assert printed.splitlines()[-1] == "ran [0.5, 0.5, 0.5] cpu"


def test_importing_leaves_heavy_packages_alone() -> None:
    """Triton and torch.compile are imported when they are used, not before."""
    code = "import sys, torch; before = set(sys.modules); import torch_revdeq as rd"
    code += "; rd.solve(torch.tanh, torch.zeros(3, requires_grad=True)).z.sum().backward()"
    code += "; print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    code += "; print('torch._dynamo' in sys.modules)"
    packages, dynamo = run(code).splitlines()
    assert "triton" not in packages.split()
    assert dynamo == "False"


def test_what_is_imported_later_is_there() -> None:
    code = "import torch_revdeq as rd, sys; print('torch_revdeq.limit' in sys.modules)"
    code += "; print(*(n for n in rd.__all__ if getattr(rd, n).__name__ != n))"
    code += "; from torch_revdeq import *; print(fixed_point.__module__, hasattr(rd, 'nothing'))"
    assert run(code).split("\n") == ["False", "", "torch_revdeq.limit.fixed_point False", ""]


# ---- python -m revdeq_kernels.info, python -m torch_revdeq ------------------------------------


@pytest.mark.parametrize("module", ["revdeq_kernels.info", "torch_revdeq"])
def test_info_names_versions_backends_and_what_is_validated(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = done.stdout
    for fact in (rk.__version__, torch.__version__, sys.version.split()[0], "triton", "validated"):
        assert fact in report
    for name in rk.backends.NAMES:
        reason = rk.backends.why_not(name)
        if name != "triton":  # the report's process has no interpreter of Triton's
            assert f"{name:11}{reason or 'can run'}" in report
