"""C++ that Python cannot reach in isolation, compiled with the package's flags and run."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import revdeq_ninja
import torch
from revdeq_ninja import Library

from setup import COMMON, CXX_FLAGS
from tests import ROOT
from tests.native import compiling
from tests.native.compiling import NATIVE, compile_all, compiled, link_and_run, needs_compiler

CPU = ROOT / "csrc" / "cpu"
CUDA = ROOT / "csrc" / "cuda"
X86 = platform.machine() == "x86_64"

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

pytestmark = needs_compiler

# The lanes of the cell's activations, and what the compiler is told for each.
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", *AVX2)
LANES = {"portable": (), "avx2": AVX2, "avx512": AVX512} if X86 else {"portable": ()}


def test_an_object_of_the_build_is_taken_while_it_would_be_compiled_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a folder" / "parts"
    source, header = folder / "one.cpp", folder / "one.h"
    folder.mkdir(parents=True)
    monkeypatch.setattr(compiling, "BUILT", tmp_path / "built")

    def build(*flags: str, text: str = "") -> None:
        source.write_text('#include "one.h"\nint one() { return value; }\n' + text)
        header.write_text("inline int value = 1;\n")
        compiled = {source: [*COMMON, *CXX_FLAGS, *flags]}
        library = Library("one.so", "cxx", compiling.CXX, compiled, ["-shared"])
        revdeq_ninja.build(tmp_path / "built", [library])

    build(f"-isystem{tmp_path}")
    (found,) = (tmp_path / "built").glob("*.o")
    assert compiling.built(source) == found
    header.write_text("inline int value = 2;\n")
    assert compiling.built(source) is None
    header.write_text("inline int value = 1;\n")
    assert compiling.built(source) == found
    monkeypatch.setattr(compiling, "run_compiler", other_version(compiling.run_compiler))
    assert compiling.built(source) is None
    monkeypatch.undo()
    monkeypatch.setattr(compiling, "BUILT", tmp_path / "built")
    build("-O1")
    assert compiling.built(source) is None
    build(text="static void unused() {}\n")
    assert compiling.built(source) is None


def other_version(run: Callable[..., str]) -> Callable[..., str]:
    """The compiler, as if it had been updated."""
    return lambda *arguments: "99\n" if arguments == ("--version",) else run(*arguments)


CLANG = next(filter(None, map(shutil.which, ("clang++-14", "clang++-16", "clang++"))), None)


@pytest.mark.skipif(CLANG is None, reason="no clang")
@pytest.mark.parametrize(
    "file", ["backend.cpp", "loops_avx2.cpp", "cell_avx512.cpp", "cell_amx.cpp"]
)
def test_clang_takes_the_sources(file: str) -> None:
    """From 14 on: what it refuses of GCC's builtins is not used."""
    torch_headers = Path(torch.__file__).parent / "include"
    command = [CLANG, *COMMON, f"-isystem{torch_headers}", "-fsyntax-only", str(CPU / file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_forms_of_the_exact_step(tmp_path: Path) -> None:
    """Shift, integer and general form agree with 128-bit division wherever they apply."""
    objects = compile_all("forms", NATIVE / "check_forms.cpp")
    assert link_and_run(tmp_path / "program", *objects) == "0 failures\n"


def test_instruction_sets(tmp_path: Path) -> None:
    """Baseline, AVX2 and AVX-512 give the same bits, as far as this processor has them."""
    loops = sorted(CPU.glob("loops_*.cpp"))
    assert len(loops) == 3
    objects = compile_all("sets", NATIVE / "check_instruction_sets.cpp", *loops)
    output = link_and_run(tmp_path / "program", *objects)
    assert output.endswith("\n0 failures\n")
    variants = re.findall(r"^baseline and [\w-]+: (\d+) variants$", output, re.MULTILINE)
    assert variants
    assert min(map(int, variants)) > 450


def test_portable_lanes(tmp_path: Path) -> None:
    """The vectors of any processor give the bits of one element at a time."""
    objects = compile_all("lanes", NATIVE / "check_portable_lanes.cpp")
    assert link_and_run(tmp_path / "program", *objects) == "27 members\n0 failures\n"


def test_activations_of_the_cell(tmp_path: Path) -> None:
    """Within their bounds in all lanes, with the bits of all lanes that round alike."""
    sources = [(lanes, NATIVE / "activation_lanes.cpp", flags) for lanes, flags in LANES.items()]
    sources.append(("check", NATIVE / "check_activations.cpp", ()))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda job: compiled(f"activations/{job[0]}", *job[1:]), sources))
    output = link_and_run(tmp_path / "program", *objects)
    assert re.search(r"\n[234] kinds of lanes\n0 failures\n$", output)


def cells() -> list[Path]:
    """The objects of the equilibrium cell, one for each instruction set."""
    sources = sorted(CPU.glob("cell_*.cpp"))
    return compile_all("cells", *(path for path in sources if path.stem != "cell_ops"))


def check_cells(program: Path, *arguments: str, emulated: tuple[str, ...]) -> tuple[int, ...]:
    """Run check_cell.cpp; `emulated` are the flags of the emulation. The counts that it prints."""
    assert len(cells()) == 4
    sources = NATIVE / "check_cell.cpp", CPU / "instruction_sets.cpp"
    objects = [*compile_all("cells", *sources), *cells()]
    objects += compile_all("emulated", NATIVE / "cell_emulated.cpp", flags=emulated)
    flags = ("-pthread", *(flag for flag in emulated if "sanitize" in flag))
    output = link_and_run(program, *objects, flags=flags, arguments=arguments)
    form = r"(\d+) cells, (\d) and (\d) instruction sets, (\d+) came back, (\d+) by matrices\n"
    found = re.search(f"^{form}0 failures$", output, re.MULTILINE)
    assert found, output
    return tuple(map(int, found.groups()))


def test_cells(tmp_path: Path) -> None:
    """The cell's kernels: AVX2 and AVX-512 give the same bits; all reconstruct exact states."""
    count, vectors, matrices, came_back, by_matrices = check_cells(
        tmp_path / "program", emulated=("-O1",)
    )
    assert count == 600
    assert came_back > 400 * vectors
    assert by_matrices > 150 * matrices


@pytest.mark.slow
def test_matrix_products_stay_within_their_memory(tmp_path: Path) -> None:
    """Of AMX's loads and stores the sanitizers see nothing; of the emulation's they do."""
    *_, by_matrices = check_cells(tmp_path / "program", "150", emulated=SANITIZED)
    assert by_matrices > 40


def test_the_emulation_of_amx_has_its_bits(tmp_path: Path) -> None:
    if not X86:
        pytest.skip("AMX is part of x86-64")
    sources = (NATIVE / "check_amx.cpp", NATIVE / "amx_product.cpp", CPU / "instruction_sets.cpp")
    output = link_and_run(tmp_path / "program", *compile_all("amx", *sources))
    if output == "no AMX\n":
        pytest.skip("no AMX")
    found = re.search(r"^(\d+) sums are finite\n0 failures$", output, re.MULTILINE)
    assert found, output
    assert int(found[1]) > 200_000


@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump")
def test_shared_functions_run_anywhere() -> None:
    """What the linker may keep one copy of, for all instruction sets, uses no wide one."""
    loops = [path for path in sorted(CPU.glob("loops_*.cpp")) if "baseline" not in path.stem]
    wide = [
        *compile_all("sets", *loops),
        *(path for path in cells() if "baseline" not in path.stem),
    ]
    assert len(wide) == 5
    for path in wide:
        command = ["objdump", "-d", "--no-show-raw-insn", "-C", str(path)]
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        symbols = subprocess.run(
            ["nm", "-C", str(path)], capture_output=True, text=True, check=True
        )
        shared = set(re.findall(r"^\w* [WV] (.*)$", symbols.stdout, re.M))
        assert shared
        functions = re.findall(r"^\w+ <(.*)>:\n((?:.+\n)*)", code, re.M)
        assert any("zmm" in body or "ymm" in body for _, body in functions)
        for name, body in functions:
            if name in shared and not re.search("Avx|Amx", name):
                assert not re.search(r"\t(v\w+)\s", body), f"{path.stem}: {name}"


@pytest.fixture(scope="module")
def emulations() -> dict[str, Path]:
    """The objects of the programs of GRIDS, and of the CPU loops, by their names."""
    sources = [*(NATIVE / f"{program}.cpp" for program in GRIDS), CPU / "loops_baseline.cpp"]
    objects = compile_all("emulations", *sources, flags=SANITIZED)
    return {source.stem: target for source, target in zip(sources, objects, strict=True)}


def test_every_cuda_grid_is_emulated() -> None:
    headers = "".join(path.read_text() for path in CUDA.glob("*.h"))
    defined = re.findall(r"^REVDEQ_INLINE void (\w+_grid)\(", headers, re.MULTILINE)
    emulated = [grid for grids in GRIDS.values() for grid in grids]
    assert sorted(emulated) == sorted(defined)


@pytest.mark.parametrize("program", GRIDS)
def test_cuda_kernels_on_the_cpu(emulations: dict[str, Path], program: str, tmp_path: Path) -> None:
    """What each CUDA thread does, over the whole grid, under the sanitizers."""
    objects = emulations[program], emulations["loops_baseline"]
    output = link_and_run(tmp_path / program, *objects, flags=SANITIZE)
    assert output.endswith("\n0 failures\n")
    found = {grid: int(count) for grid, count in re.findall(r"(\w+): (\d+) comparisons", output)}
    assert found.keys() == GRIDS[program].keys()
    for grid, least in GRIDS[program].items():
        assert found[grid] > least, f"{grid}: {found[grid]} comparisons"
