"""The resources of the cell's kernels, from machine code and as recorded in docs/cell.json."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.aot import cell_record
from tools.aot.cell_record import Processor, Taken


def listing(*code: str) -> str:
    """Machine code as cuobjdump shows it, 16 bytes an instruction; {n} is the address of line n."""
    addresses = [f"{16 * k:04x}" for k in range(len(code))]
    lines = (line.format(*(f"0x{a}" for a in addresses)) for line in code)
    return "\n".join(
        f"        /*{a}*/      {line} ;      /* 0x{k:016x} */"
        for k, (a, line) in enumerate(zip(addresses, lines, strict=True))
    )


TILES_AND_STEPS = listing(
    "MOV R1, c[0x0][0x28]",
    "LDG.E R2, [R4.64]",  # a tile
    "HMMA.16816.F32.BF16 R8, R4, R6, RZ",  # a step
    "FMUL R8, R8, R2",
    "@P1 BRA {5}",  # past what follows
    "@P0 BRA {2}",
    "SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [R3], R5",  # waits
    "@!P2 BRA {6}",
    "@P3 BRA {1}",
    "EXIT",
    "BRA {10}",
)
"""Two loops around each other, one that waits, and the one that ptxas leaves at the end."""


def test_the_loop_over_the_steps_is_found() -> None:
    assert cell_record.instructions_of_step(TILES_AND_STEPS) == 4
    assert cell_record.instructions_of_step(listing("FADD R1, R1, R2", "EXIT")) == 0


@pytest.mark.parametrize(("name", "per_element"), [("triton", 1.0), ("gluon", 2.0)])
def test_instructions_are_of_an_element_and_a_half_step(name: str, per_element: float) -> None:
    """4 instructions for 2 elements of a thread, in a loop of two half steps or one."""
    cell = SimpleNamespace(tile=8, features=32)
    taken = cell_record.taken(name, TILES_AND_STEPS, cell, 4, 100, 1000, 90)
    assert taken == Taken(per_element, 100, 1000, 4)


@pytest.mark.parametrize(
    ("warps", "registers", "shared", "programs"),
    [
        (4, 128, 0, 4),
        (4, 129, 0, 3),  # 136 are allocated
        (4, 32, 0, 16),
        (4, 32, 57 * 1024, 3),
        (4, 32, 56 * 1024, 4),
        (8, 16, 0, 8),  # warps
    ],
)
def test_programs_of_a_processor(warps: int, registers: int, shared: int, programs: int) -> None:
    assert Processor(228 * 1024, 64).programs(warps, registers, shared) == programs


LABEL = "triton cell forward bf16 64 act 0 form 0 digits 8"
TAKEN = Taken(25.0, 142, 12288, 3)


def test_a_configuration_has_to_start_what_fits() -> None:
    found = {LABEL: {"sm_90": TAKEN}, f"{LABEL} halting": {"sm_90": TAKEN._replace(programs=4)}}
    assert cell_record.misfits(found, dict.fromkeys(found, 3)) == []
    for starts in (2, 4):
        (what,) = cell_record.misfits(found, dict.fromkeys(found, starts))
        assert f"starts {starts} programs per multiprocessor, but 3 of {LABEL} fit on" in what


def test_instructions_may_not_creep_up() -> None:
    record = {"triton": "3.6.0", "kernels": {LABEL: {"sm_90": TAKEN._asdict()}}}
    for instructions in (25.0, 24.9):
        taken = TAKEN._replace(instructions=instructions)
        assert cell_record.crept_up({LABEL: {"sm_90": taken}}, record) == []
    more = {"sm_90": TAKEN._replace(instructions=25.1), "sm_80": TAKEN}
    first, second = cell_record.crept_up({LABEL: more}, record)
    assert "on sm_90: 25.1 instructions per element and half step, more than the 25.0" in first
    assert "on sm_80: expected it in docs/cell.json" in second


def test_the_record_is_read_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_record, "RECORD", tmp_path / "cell.json")
    assert cell_record.read()["kernels"] == {}
    cell_record.write({LABEL: {"sm_90": TAKEN, "sm_80": TAKEN}}, "3.6.0")
    record = cell_record.read()
    assert record["triton"] == "3.6.0" and list(record["kernels"][LABEL]) == ["sm_80", "sm_90"]
    assert Taken(**record["kernels"][LABEL]["sm_90"]) == TAKEN
