"""C++ that no Python call reaches alone, compiled with the flags of the package and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from setup import COMMON, CXX_FLAGS
from tests import ROOT

CPU = ROOT / "csrc" / "cpu"
CUDA = ROOT / "csrc" / "cuda"
NATIVE = ROOT / "tests" / "native"
CXX = os.environ.get("CXX") or "g++"

# For what runs under the sanitizers. Functions that are not inlined make it compile twice as fast.
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SANITIZED = ("-O0", "-g1", "-Dalways_inline=", "-Wno-unknown-pragmas", *SANITIZE)

# The grid functions of the CUDA kernels that each program runs, and how much it compares at least.
GRIDS = {
    "check_cuda_bodies": {
        "half_step_grid": 7000,
        "channel_step_grid": 20000,
        "adjoint_grid": 7000,
        "pass_grid": 20000,
    },
    "check_cuda_exact": {
        "exact_grid": 25000,
        "exact_pass_grid": 20000,
        "quantize_grid": 800,
        "dequantize_grid": 600,
    },
    "check_cuda_residual": {"residual_grid": 7000, "norms_grid": 2500},
}

pytestmark = pytest.mark.skipif(shutil.which(CXX) is None, reason=f"no C++ compiler ({CXX})")


def run_compiler(*arguments: str) -> None:
    command = [CXX, *COMMON, *CXX_FLAGS, "-Werror", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def compile_all(folder: Path, *sources: Path, flags: tuple[str, ...] = ()) -> list[Path]:
    """The objects of `sources`, compiled at once."""
    objects = [folder / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for job in [
            pool.submit(run_compiler, *flags, "-c", str(source), "-o", str(target))
            for source, target in zip(sources, objects, strict=True)
        ]:
            job.result()
    return objects


def link_and_run(program: Path, *objects: Path, flags: tuple[str, ...] = ()) -> str:
    run_compiler(*flags, *map(str, objects), "-o", str(program))
    run = subprocess.run([program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_forms_of_the_exact_step(tmp_path: Path) -> None:
    """Shift, integer and general form agree with 128-bit division wherever they apply."""
    objects = compile_all(tmp_path, NATIVE / "check_forms.cpp")
    assert link_and_run(tmp_path / "program", *objects) == "0 failures\n"


def test_instruction_sets(tmp_path: Path) -> None:
    """Baseline, AVX2 and AVX-512 give the same bits, as far as this processor has them."""
    loops = sorted(CPU.glob("loops_*.cpp"))
    assert len(loops) == 3
    objects = compile_all(tmp_path, NATIVE / "check_instruction_sets.cpp", *loops)
    output = link_and_run(tmp_path / "program", *objects)
    assert output.endswith("\n0 failures\n")
    variants = re.findall(r"^baseline and [\w-]+: (\d+) variants$", output, re.MULTILINE)
    assert variants
    assert min(map(int, variants)) > 450


@pytest.fixture(scope="module")
def emulations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the objects of the programs of GRIDS, and of the CPU loops."""
    folder = tmp_path_factory.mktemp("emulations")
    programs = [NATIVE / f"{program}.cpp" for program in GRIDS]
    compile_all(folder, *programs, CPU / "loops_baseline.cpp", flags=SANITIZED)
    return folder


def test_every_cuda_grid_is_emulated() -> None:
    headers = "".join(path.read_text() for path in CUDA.glob("*.h"))
    defined = re.findall(r"^REVDEQ_INLINE void (\w+_grid)\(", headers, re.MULTILINE)
    emulated = [grid for grids in GRIDS.values() for grid in grids]
    assert sorted(emulated) == sorted(defined)


@pytest.mark.parametrize("program", GRIDS)
def test_cuda_kernels_on_the_cpu(emulations: Path, program: str) -> None:
    """What each CUDA thread does, over the whole grid, under the sanitizers."""
    objects = emulations / f"{program}.o", emulations / "loops_baseline.o"
    output = link_and_run(emulations / program, *objects, flags=SANITIZE)
    assert output.endswith("\n0 failures\n")
    found = {grid: int(count) for grid, count in re.findall(r"(\w+): (\d+) comparisons", output)}
    assert found.keys() == GRIDS[program].keys()
    for grid, least in GRIDS[program].items():
        assert found[grid] > least, f"{grid}: {found[grid]} comparisons"
