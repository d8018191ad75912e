"""C++ that no Python call reaches alone, compiled with the flags of the package and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from setup import COMMON, CXX_FLAGS

ROOT = Path(__file__).parent.parent
CPU = ROOT / "csrc" / "cpu"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
CXX = os.environ.get("CXX") or "g++"

pytestmark = pytest.mark.skipif(shutil.which(CXX) is None, reason=f"no C++ compiler ({CXX})")


def compile_and_run(folder: Path, *sources: Path, flags: tuple[str, ...] = ()) -> str:
    program = folder / "program"
    command = [CXX, *COMMON, *CXX_FLAGS, "-Werror", *flags, *map(str, sources), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    run = subprocess.run([program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    return run.stdout


def test_forms_of_the_exact_step(tmp_path: Path) -> None:
    """Shift, integer and general form agree with 128-bit division wherever they apply."""
    output = compile_and_run(tmp_path, ROOT / "tests" / "native" / "check_forms.cpp")
    assert output == "0 failures\n"


def test_instruction_sets(tmp_path: Path) -> None:
    """Baseline, AVX2 and AVX-512 give the same bits, as far as this processor has them."""
    loops = sorted(CPU.glob("half_step_*.cpp"))
    assert len(loops) == 3
    output = compile_and_run(tmp_path, ROOT / "tests/native/check_instruction_sets.cpp", *loops)
    assert output.endswith("\n0 failures\n")
    assert "baseline and" in output


def test_cuda_kernels_on_the_cpu(tmp_path: Path) -> None:
    """What each CUDA thread does, over the whole grid, under the sanitizers."""
    source = ROOT / "tests" / "native" / "check_cuda_bodies.cpp"
    flags = ("-O0", "-g1", "-Wno-unknown-pragmas", *SANITIZE)
    output = compile_and_run(tmp_path, source, CPU / "half_step_baseline.cpp", flags=flags)
    comparisons = re.fullmatch(r"(\d+) comparisons, 0 failures\n", output)
    assert comparisons is not None, output
    assert int(comparisons[1]) > 5000
