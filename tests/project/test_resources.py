"""nvcc's report on the CUDA kernels, and the record of it, on short excerpts of logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.project.machine_code import sass
from tools.cuda import ptxas, resources
from tools.cuda.ptxas import Ceiling

SCALAR = (
    "_ZN6revdeq4cuda48_GLOBAL__N__f82eb579_10_adjoint_cu_b335f79e_232614adjoint_kernelILi1EfffEEv"
    "NS0_13AdjointParamsIT0_T1_T2_EEl"
)
VECTOR = SCALAR.replace("ILi1E", "ILi4E")


# ---- ptxas -----------------------------------------------------------------------------


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
    return ptxas.main(str(path), ["sm_80", "sm_90a"], ceilings)


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
    kernels = ptxas.parse(ptxas_log("sm_80") + device)
    assert [kernel.entry for kernel in kernels] == [True, False]
    assert "_Z5helperv: spills" in ptxas.problems(kernels, ["sm_80"])[0]


@pytest.mark.parametrize(
    ("ceilings", "problems"),
    [
        (
            {"update": Ceiling(registers=31, shared=2047)},
            [
                "sm_80 update: expected at most 31 registers, got 32;",
                "sm_80 update: expected at most 2047 bytes of static shared memory, got 2048;",
                "sm_90a update: expected at most 31 registers, got 32;",
                "find out why, or raise the limit: `make docs-table ARGS=--raise`",
            ],
        ),
        ({}, ["update: expected it in docs/resources.json, which `make docs-table` writes"]),
        (
            FITTING | {"gone": Ceiling(registers=8)},
            ["gone: no such kernel in the log, but in docs/resources.json"],
        ),
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
    kernels = ptxas.parse(log)
    for kernel, name in zip(kernels, ptxas.readable([SCALAR, VECTOR]), strict=True):
        kernel.name = name
    (found,) = ptxas.above_ceilings(kernels, {"adjoint_kernel": Ceiling(39, 2048)})
    assert "adjoint_kernel<4, float, float, float>: expected at most 39 registers, got 41" in found


# ---- resources --------------------------------------------------------------------------

LOG = ptxas_log("sm_90a", SCALAR, registers=14, shared=0)
LOG += ptxas_log("sm_90a", VECTOR, registers=20, shared=16, stores=4, loads=8)
SASS = sass("sm_90", {SCALAR: ["LDG.E R4, [R2.64]"], VECTOR: ["LDG.E.128 R4, [R2.64]"]})
COLLECTED = {
    "adjoint_kernel": {
        "sm_90a": {
            "instances": 2, "registers": [14, 20], "spilled": 12, "shared": 16, "wide_loads": 1,
            "wide_stores": 0, "under_way": [8.0, 32.0],
        }
    }
}  # fmt: skip


def built(**changes: Any) -> resources.Resources:
    return {"nvcc": "13.0.88", "archs": "9.0a", "kernels": COLLECTED, **changes}  # type: ignore[typeddict-item]


def test_resources_come_from_the_log_and_the_library() -> None:
    assert resources.collect(LOG, SASS) == COLLECTED


def test_the_log_of_another_build_is_refused() -> None:
    with pytest.raises(ValueError, match="contain every kernel of the log, but this one"):
        resources.collect(LOG, sass("sm_100", {SCALAR: [], VECTOR: []}))


@pytest.mark.parametrize(
    ("registers", "threads"), [(32, 2048), (33, 1536), (80, 768), (81, 512), (128, 512), (168, 256)]
)
def test_registers_limit_the_threads_of_an_sm(registers: int, threads: int) -> None:
    assert resources.threads_of_sm(registers) == threads


def test_a_block_has_as_many_threads_as_the_kernels_are_launched_with() -> None:
    grid = (ROOT / "csrc" / "cuda" / "grid.h").read_text(encoding="utf-8")
    assert f"constexpr int kThreads = {resources.BLOCK};" in grid


def test_architectures_are_named_as_torch_names_them() -> None:
    row = COLLECTED["adjoint_kernel"]["sm_90a"]
    kernels: Any = {"a_kernel": {"sm_80": row, "sm_90a": row}, "b_kernel": {"sm_100": row}}
    assert resources.arch_list(kernels) == "8.0;9.0a;10.0"


def test_resources_have_a_line_for_each_kernel_and_architecture(tmp_path: Path) -> None:
    text = resources.as_text(built())
    assert sum("instances" in line for line in text.splitlines()) == 1
    path = tmp_path / "resources.json"
    path.write_text(text, encoding="utf-8")
    assert resources.read(path) == built()


def test_the_compiler_is_read_from_its_note() -> None:
    note = b"ptxas\0Cuda compilation tools, release 13.0, V13.0.88\0Build cuda_13.0.r13.0"
    assert resources.nvcc_version(b"\x7fELF" + 2 * note) == "13.0.88"
    assert resources.nvcc_version(b"\x7fELF") == "unknown"


@pytest.mark.parametrize(
    ("now", "status", "message"),
    [
        (built(), 0, "matches this build"),
        (built(archs="8.0"), 1, '+  "archs": "8.0"'),
        (built(archs="8.0", nvcc="12.9.41"), 0, "NOT COMPARED"),
    ],
)
def test_resources_are_compared_for_the_recorded_compiler(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    now: resources.Resources,
    status: int,
    message: str,
) -> None:
    path = tmp_path / "resources.json"
    assert resources.check(now, path) == 1
    assert "make docs-table" in capsys.readouterr().err
    path.write_text(resources.as_text(built()), encoding="utf-8")
    assert resources.check(now, path) == status
    printed = capsys.readouterr()
    assert message in (printed.err if status else printed.out)


def test_ceilings_are_what_is_recorded() -> None:
    """Registers come by eights; a kernel that spills is not recorded."""
    rows: Any = {
        "sm_80": {"registers": [14, 41], "shared": 16},
        "sm_90a": {"registers": [50, 56], "shared": 0},
    }
    assert ptxas.ceilings({"one": rows, "two": {"sm_80": rows["sm_80"]}}) == {
        "one": Ceiling(registers=56, shared=16),
        "two": Ceiling(registers=48, shared=16),
    }
    kernels = resources.read()["kernels"]
    assert ptxas.ceilings(kernels) == ptxas.CEILINGS
    assert ptxas.CEILINGS.keys() == kernels.keys()
    assert not any(row["spilled"] for by_arch in kernels.values() for row in by_arch.values())


@pytest.mark.parametrize(("registers", "shared"), [(24, 16), (16, 32), (16, 16)])
def test_a_ceiling_is_raised_on_purpose_alone(registers: int, shared: int) -> None:
    """The kernels of COLLECTED take 20 registers, and 16 bytes of shared memory."""
    found = resources.raised(built(), {"adjoint_kernel": Ceiling(registers, shared)})
    assert found == ([] if registers == 24 else ["adjoint_kernel"])
    assert resources.raised(built(), {}) == []


def test_more_is_not_recorded_without_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log, library, record = tmp_path / "log", tmp_path / "library", tmp_path / "resources.json"
    log.write_text(LOG)
    library.write_bytes(b"")
    monkeypatch.setattr(resources, "RESOURCES", record)
    monkeypatch.setattr(resources, "CEILINGS", {"adjoint_kernel": Ceiling(registers=16)})
    monkeypatch.setattr(resources, "disassemble", lambda _: SASS)
    assert resources.main(["--write", str(log), str(library)]) == 1
    assert "above their ceilings: adjoint_kernel; find out why" in capsys.readouterr().err
    assert not record.exists()
    assert resources.main(["--write", "--raise", str(log), str(library)]) == 0
    assert resources.read(record)["kernels"] == COLLECTED
