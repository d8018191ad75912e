"""The checks of the CUDA kernels' machine code, on short excerpts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from tests.project.machine_code import sass
from tools.cuda import sass as check
from tools.cuda.accesses import Accesses, InFlight, accesses
from tools.cuda.machine_code import Instruction, blocks, functions
from tools.cuda.sass import MOVES, Moves

NAME = "_Z6updatePf"
PASS = "pass_kernel<float, revdeq::bfloat16, float, float>"
EXACT = "exact_kernel<Direction 0, Form 0, 8, revdeq::bfloat16>"


def code(*lines: str) -> list[Instruction]:
    return functions(sass("sm_90", {NAME: lines}))["sm_90", NAME]


def loads(count: int, first: int = 8, at: int = 0) -> list[str]:
    """So many loads of 16 bytes, each into registers of its own."""
    return [
        f"LDG.E.128 R{first + 4 * k}, desc[UR4][R2.64+{at + 0x80 * k:#x}]" for k in range(count)
    ]


# ---- instructions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instruction", "kind", "size"),
    [
        ("LDG.E.128 R4, [R2.64]", "LDG", 16),
        ("@!P0 LDG.E.128.CONSTANT R4, [R2.64]", "LDG", 16),
        ("LDG.E.EF.128 R4, desc[UR4][R2.64]", "LDG", 16),
        ("LDG.E.ENL2.256 R8, R4, desc[UR4][R2.64]", "LDG", 32),
        ("LDG.E.64 R4, [R2.64]", "LDG", 8),
        ("LDG.E R4, [R2.64]", "LDG", 4),
        ("LDG.E.U16.CONSTANT R4, [R2.64+0x128]", "LDG", 2),
        ("STG.E.128 desc[UR4][R2.64], R4", "STG", 16),
        ("STG.E.EF.128.STRONG.GPU desc[UR4][R2.64], R4", "STG", 16),
        ("STG.E.ENL2.256 desc[UR4][R2.64], R8, R4", "STG", 32),
        ("STG.E.64.STRONG.SM desc[UR4][R2.64], R4", "STG", 8),
        ("STG.E.U8 [R2.64], R128", "STG", 1),
    ],
)
def test_accesses_are_counted_by_their_bytes(instruction: str, kind: str, size: int) -> None:
    found = accesses(code(instruction))
    assert (found.loads if kind == "LDG" else found.stores) == {size: 1}
    assert not (found.stores if kind == "LDG" else found.loads)


@pytest.mark.parametrize(
    "instruction",
    [
        "LDCU.128 UR4, c[0x0][0x380]",  # a parameter
        "LDS.128 R4, [R2]",  # shared memory
        "STL.128 [R1], R4",  # a spill
    ],
)
def test_other_memory_does_not_count(instruction: str) -> None:
    assert accesses(code(instruction)) == Accesses()


@pytest.mark.parametrize(
    ("instruction", "registers"),
    [
        ("LDG.E.U8 R4, desc[UR4][R2.64]", {4}),
        ("LDG.E R4, desc[UR4][R2.64]", {4}),
        ("LDG.E.64 R4, [R2.64+0x8]", {4, 5}),
        ("LDG.E.128.CONSTANT R4, desc[UR4][R2.64]", {4, 5, 6, 7}),
        ("LDG.E.ENL2.256 R8, R16, desc[UR4][R2.64]", {8, 9, 10, 11, 16, 17, 18, 19}),
    ],
)
def test_a_load_writes_as_many_registers_as_it_fills(instruction: str, registers: set[int]) -> None:
    assert code(instruction)[0].written() == registers


def test_blocks_end_at_jumps_and_begin_where_one_leads() -> None:
    lines = ("MOV R0, R1", "@P0 BRA 0x30", "MOV R2, R3", "MOV R4, R5", "EXIT")
    names = [[one.address for one in block] for block in blocks(code(*lines))]
    assert names == [[0, 16], [32], [48, 64]]


def test_functions_are_found_by_architecture() -> None:
    text = sass("sm_80", {"a": ["EXIT"], "b": []}) + sass("sm_100", {"a": ["EXIT", "NOP"]})
    found = functions(text)
    assert {key: len(one) for key, one in found.items()} == {
        ("sm_80", "a"): 1,
        ("sm_80", "b"): 0,
        ("sm_100", "a"): 2,
    }


# ---- loads in flight -------------------------------------------------------------------------

STORE = "STG.E.128 desc[UR4][R2.64], R40"


@pytest.mark.parametrize(
    ("lines", "under_way"),
    [
        (loads(8), 8),
        (["@P1 LDG.E.128 R4, desc[UR4][R2.64]", *loads(3)], 4),
        ([*loads(4), "IADD3 R50, R51, R52, RZ", *loads(4, first=24)], 8),
        ([*loads(4), "IADD3 R50, R51, R8, RZ", *loads(4, first=24)], 7),  # the first is used
        ([*loads(4), "IADD3 R50, R51, R23, RZ", *loads(4, first=24)], 4),  # the last of them
        ([*loads(4), "IADD3 R10, R51, R52, RZ", *loads(4, first=24)], 7),  # or overwritten
        ([*loads(4), STORE, *loads(4, first=24)], 4),
        ([*loads(4), "@!P0 BRA 0x0", *loads(4, first=24)], 4),
        ([*loads(2), *loads(2)], 2),  # into the same registers
        ([*loads(2), STORE, *loads(3), STORE], 3),
    ],
)
def test_loads_are_under_way_until_one_is_used_or_something_is_stored(
    lines: list[str], under_way: int
) -> None:
    assert accesses(code(*lines)).in_flight == InFlight(under_way, 16 * under_way)


def test_a_block_that_is_entered_in_the_middle_counts_from_there() -> None:
    lines = [*loads(4), *loads(4, first=24), "@P0 BRA 0x40"]
    assert accesses(code(*lines)).in_flight.loads == 4


# ---- neighbors -------------------------------------------------------------------------------


def halves(base: str, offsets: Sequence[int], kind: str = "STG.E.U16") -> list[str]:
    return [f"{kind} desc[UR4][{base}.64+{offset:#x}], R9" for offset in offsets]


@pytest.mark.parametrize(
    ("lines", "split"),
    [
        (halves("R2", [0, 2, 4, 6]), 3),
        (halves("R2", [6, 4, 2, 0]), 3),
        (halves("R2", [0, 4, 8, 12], "STG.E"), 3),
        (halves("R2", [0, 8], "STG.E.64"), 1),
        (["LDG.E R4, desc[UR4][R2.64]", "LDG.E R5, desc[UR4][R2.64+0x4]"], 1),
        (halves("R2", [0, 16, 32], "STG.E.128"), 0),
        (halves("R2", [0, 64, 128]), 0),
        ([*halves("R2", [0]), *halves("R4", [2])], 0),  # another tensor
        ([*halves("R2", [0]), "IADD3 R2, P0, R6, R8, RZ", *halves("R2", [2])], 0),
        ([*halves("R2", [0]), "BRA 0x20", *halves("R2", [2])], 0),
        ([*halves("R2", [0]), "LDG.E.U16 R5, desc[UR4][R2.64+0x2]"], 0),
    ],
)
def test_neighbors_could_be_one_access(lines: list[str], split: int) -> None:
    assert len(accesses(code(*lines)).split) == split


# ---- what is asked ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "loaded", "stored", "in_flight"),
    [
        (
            "revdeq::cuda::half_step_kernel<Direction 1, float, revdeq::bfloat16, float>",
            [16, 8],
            [16, 8, 16],
            2,
        ),
        ("channel_step_kernel<Direction 0, double, float, double>", [16, 8], [16, 8, 8], 2),
        (
            "half_step_kernel<Direction 0, revdeq::float16, revdeq::float16, float>",
            [16, 16],
            [16, 16, 16, 16],  # eight numbers, as float32
            2,
        ),
        ("adjoint_kernel<float, revdeq::float16>", [16, 16, 16, 8], [16, 8], 3),
        (PASS, [16, 8, 16, 16, 16, 8], [16, 8, 16, 16, 8], 3),
        (EXACT, 4 * [16, 8], [*(4 * [16, 8, 16]), 4], 8),
        (
            "exact_kernel<Direction 1, Form 1, 3, float>",
            [*(6 * [16, 16]), 4, 4],
            6 * [16, 16, 16],
            8,
        ),
        (
            "exact_pass_kernel<Form 2, 1, revdeq::bfloat16>",
            [*(4 * [16, 8]), *(4 * [4]), 16, 16, 16, 8],
            [*(4 * [16, 8, 16]), 16, 8],
            8,
        ),
        ("quantize_kernel<revdeq::bfloat16>", [8], [16], 1),
        ("dequantize_kernel<double>", [16], [16, 16], 1),
        ("residual_kernel<float, float>", [], [], 16),
        ("norms_kernel", [], [], 4),
    ],
)
def test_an_instance_must_move_its_vectors(
    name: str, loaded: list[int], stored: list[int], in_flight: int
) -> None:
    asked = MOVES[check.family(name)](*check.arguments(name))
    assert check.in_pieces(asked.loads) == Counter(loaded)
    assert check.in_pieces(asked.stores) == Counter(stored)
    assert asked.in_flight == in_flight


def moved(
    loaded: Sequence[int], stored: Sequence[int], split: Sequence[str] = (), under_way: int = 8
) -> Accesses:
    return Accesses(Counter(loaded), Counter(stored), list(split), InFlight(under_way, 0))


SEED = "STG.E.U16 desc[UR4][R2.64+0x2], R9"
WHOLE = ([16, 8, 16, 16, 16, 8, 4, 2], [16, 8, 16, 16, 8, 4, 2])


@pytest.mark.parametrize(
    ("name", "got", "problem"),
    [
        (PASS, moved(*WHOLE), None),
        # As it was: the seed in four pieces, beside those of the form for an element at a time.
        (PASS, moved(WHOLE[0], [16, 8, 16, 16, 2, 2, 2, 2]), "expected stores of 3 of 16, 2 of 8"),
        (PASS, moved(*WHOLE, [SEED]), "got 1 adjacent to another, such as STG.E.U16 desc"),
        (PASS, moved([16, 16, 16, 16, 8, 4, 4], WHOLE[1]), "expected loads of 4 of 16, 2 of 8"),
        (PASS, moved([16, 16, 32, 8, 8], WHOLE[1]), None),  # 32 bytes are two times 16
        (PASS, moved(*WHOLE, under_way=2), "expected 3 loads in flight at once"),
        (EXACT, moved(4 * [16, 8], [*(4 * [16, 8, 16]), 4]), None),
        (EXACT, moved(4 * [16, 8], 4 * [16, 8, 16]), "expected stores of 8 of 16, 4 of 8, 1 of 4"),
        # As it was: the loads of a group behind the stores of the one before.
        (
            EXACT,
            moved(8 * [16, 8], [*(8 * [16, 8, 16]), 4], under_way=2),
            "expected 8 loads in flight at once, before one is used or anything is stored, got 2",
        ),
        ("residual_kernel<float, float>", moved([4] * 40, [8, 8], [SEED], 32), None),
        ("new_kernel<float>", moved([16], [16]), "expected an entry in MOVES in tools/cuda/"),
    ],
)
def test_an_instance_that_moves_less_is_named(
    name: str, got: Accesses, problem: str | None
) -> None:
    known = check.family(name) in MOVES
    moves = {check.family(name): MOVES[check.family(name)]} if known else {}
    found = check.problems({("sm_90", name): got}, moves)
    assert len(found) == (problem is not None)
    if problem is not None:
        assert found[0].startswith(f"sm_90 {name}: ")
        assert problem in found[0]


def test_a_kernel_that_is_gone_is_named() -> None:
    moves = {"norms_kernel": MOVES["norms_kernel"], "gone_kernel": Moves}
    (found,) = check.problems({("sm_80", "norms_kernel"): moved([8] * 9, [8])}, moves)
    assert found == "gone_kernel: no such kernel in the library; remove it from " + check.PLACE
    assert check.problems({}, moves) == ["no kernel was found"]


def test_neighbors_are_moved_one_by_one_for_a_reason_alone() -> None:
    assert check.NARROW.keys() <= MOVES.keys()
    assert all(check.NARROW.values())


def test_instances_come_from_the_library(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its machine code to the exit status."""
    name = "_ZN6revdeq4cuda17dequantize_kernelIfEEvi"
    whole = ["LDG.E.128 R4, desc[UR4][R2.64]", "STG.E.128 desc[UR4][R8.64], R4", "EXIT"]
    moves = {"dequantize_kernel": MOVES["dequantize_kernel"]}
    monkeypatch.setattr(check, "MOVES", moves)
    monkeypatch.setattr(check, "disassemble", lambda _: sass("sm_90", {name: whole}))
    assert check.main("library") == 0
    said = capsys.readouterr().out
    assert "of 1 instances 1 load and 1 store 16 bytes at once; at least 1 " in said
    split = [whole[0], *halves("R8", [0, 4, 8, 12], "STG.E")]
    monkeypatch.setattr(check, "disassemble", lambda _: sass("sm_90", {name: split}))
    assert check.main("library") == 1
    errors = capsys.readouterr().err
    assert "sass: sm_90 revdeq::cuda::dequantize_kernel<float>: expected stores of 1" in errors
    assert "expected accesses of whole vectors, got 3 adjacent to another" in errors
