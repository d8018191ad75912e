"""What is checked of a build's CUDA kernels, on short excerpts of logs and machine code."""

from __future__ import annotations

from pathlib import Path

import cuda_report
import pytest
from cuda_report import Ceiling

SCALAR = (
    "_ZN6revdeq4cuda48_GLOBAL__N__f82eb579_10_adjoint_cu_b335f79e_232614adjoint_kernelILi1EfffEEv"
    "NS0_13AdjointParamsIT0_T1_T2_EEl"
)
VECTOR = SCALAR.replace("ILi1E", "ILi4E")


# ---- cuda_report -----------------------------------------------------------------------------


def ptxas_log(
    arch: str,
    name: str = "_Z6updatePf",
    *,
    registers: int = 32,
    shared: int = 2048,
    stack: int = 0,
    stores: int = 0,
    loads: int = 0,
) -> str:
    smem = f" {shared} bytes smem," if shared else ""
    return f"""ptxas info    : Compiling entry function '{name}' for '{arch}'
ptxas info    : Function properties for {name}
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers,{smem} 384 bytes cmem[0]
"""


BOTH_ARCHS = ptxas_log("sm_80") + ptxas_log("sm_90a")
FITTING = {"update": Ceiling(registers=32, shared=2048)}


def report(folder: Path, log: str, ceilings: dict[str, Ceiling]) -> int:
    path = folder / "ptxas.log"
    path.write_text(log)
    return cuda_report.main(str(path), ["sm_80", "sm_90a"], ceilings)


def test_a_clean_log_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(tmp_path, BOTH_ARCHS, FITTING) == 0
    assert "32 s2048B  32 s2048B  update\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("log", "problem"),
    [
        ("", "no kernel was found"),
        (ptxas_log("sm_80"), "sm_90a update: missing"),
        (ptxas_log("sm_80") + ptxas_log("sm_90a", stores=4, loads=8), "spills registers"),
        (ptxas_log("sm_80") + ptxas_log("sm_90a", loads=8), "spills registers"),
        (ptxas_log("sm_80") + ptxas_log("sm_90a", stack=16), "stack frame"),
        (BOTH_ARCHS.rsplit("\n", 2)[0], "report incomplete"),
        (ptxas_log("sm_80") + ptxas_log("sm_90a").split("\n")[0], "report incomplete"),
    ],
)
def test_a_log_with_a_fault_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], log: str, problem: str
) -> None:
    assert report(tmp_path, log, FITTING) == 1
    assert problem in capsys.readouterr().err


def test_a_device_function_that_spills_is_seen() -> None:
    device = "ptxas info    : Function properties for _Z5helperv\n"
    device += "    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n"
    kernels = cuda_report.parse(ptxas_log("sm_80") + device)
    assert [kernel.entry for kernel in kernels] == [True, False]
    assert "_Z5helperv: spills" in cuda_report.problems(kernels, ["sm_80"])[0]


@pytest.mark.parametrize(
    ("ceilings", "problems"),
    [
        (
            {"update": Ceiling(registers=31, shared=2047)},
            [
                "sm_80 update: expected at most 31 registers, got 32;",
                "sm_80 update: expected at most 2047 bytes of static shared memory, got 2048;",
                "sm_90a update: expected at most 31 registers, got 32;",
                "raise the ceiling: CEILINGS in .ci/cuda_report.py",
            ],
        ),
        (
            {},
            [
                'add `"update": Ceiling(registers=40, shared=2048),` to CEILINGS in '
                ".ci/cuda_report.py"
            ],
        ),
        (FITTING | {"gone": Ceiling(registers=8)}, ["gone: no such kernel in the log; remove it"]),
    ],
)
def test_a_kernel_is_held_to_the_ceiling_of_its_family(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ceilings: dict[str, Ceiling],
    problems: list[str],
) -> None:
    assert report(tmp_path, BOTH_ARCHS, ceilings) == 1
    printed = capsys.readouterr().err
    for problem in problems:
        assert problem in printed


def test_the_worst_instance_of_a_family_is_named() -> None:
    log = ptxas_log("sm_80", SCALAR, registers=40) + ptxas_log("sm_80", VECTOR, registers=41)
    kernels = cuda_report.parse(log)
    for kernel, name in zip(kernels, cuda_report.readable([SCALAR, VECTOR]), strict=True):
        kernel.name = name
    (found,) = cuda_report.above_ceilings(kernels, {"adjoint_kernel": Ceiling(39, 2048)})
    assert "adjoint_kernel<4, float, float, float>: expected at most 39 registers, got 41" in found
