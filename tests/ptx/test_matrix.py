"""ldmatrix, stmatrix and mma.sync, thread by thread, with the fragments of PTX ISA 9.7.14.5."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.ptx.assembly import bits_of, from_shared, listed, load, run, store, to_shared
from tools.ptx.errors import Fault, Missing
from tools.ptx.instructions import fragments

THREADS = 64
"""Two warps: a fragment is of one of them."""

RANDOM = np.random.default_rng(0)


# ---- ldmatrix and stmatrix -------------------------------------------------------------------


def held(lane: int, transposed: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """The (row, column) of an 8x8 matrix whose two elements a lane holds, low half first."""
    row, column = lane // 4, 2 * (lane % 4)
    if transposed:
        return (column, row), (column + 1, row)
    return (row, column), (row, column + 1)


ROWS = RANDOM.permutation(8 * 4 * 2).astype(np.uint32)
"""Which row of shared memory, of 8 elements, each of the 32 lanes of two warps addresses."""

MATRIX_FORMS = [(count, trans) for count in (1, 2, 4) for trans in (False, True)]


@pytest.mark.parametrize(("count", "trans"), MATRIX_FORMS)
def test_ldmatrix(count: int, trans: bool) -> None:
    """Lane 8 m + r addresses row r of matrix m; every lane gets a register of each matrix."""
    memory = RANDOM.integers(0, 2**16, (64, 8)).astype(np.uint16)
    out = np.zeros((THREADS, count), np.uint32)
    form = f"x{count}{'.trans' if trans else ''}"
    run(
        [
            *to_shared(0, memory.nbytes // 4, THREADS),
            "bar.sync 0;",
            *load(1, 0, 1, THREADS),
            "shl.b32 %v0, %v0, 4;",
            "mov.u32 %v1, shared;",
            "add.s32 %v0, %v0, %v1;",
            f"ldmatrix.sync.aligned.m8n8.{form}.shared.b16 {listed('%v', 10, count)}, [%v0];",
            *store(2, 10, count, THREADS),
        ],
        *(memory, ROWS, out),
        threads=THREADS,
        shared=memory.nbytes,
    )
    for thread in range(THREADS):
        warp, lane = divmod(thread, 32)
        for m in range(count):
            matrix = memory[ROWS[32 * warp + 8 * m : 32 * warp + 8 * m + 8]]
            low, high = (int(matrix[at]) for at in held(lane, trans))
            assert out[thread, m] == low | high << 16, (thread, m)


@pytest.mark.parametrize(("count", "trans"), MATRIX_FORMS)
def test_stmatrix(count: int, trans: bool) -> None:
    """The reverse of ldmatrix."""
    given = RANDOM.integers(0, 2**32, (THREADS, count)).astype(np.uint32)
    out = np.zeros((64, 8), np.uint16)
    form = f"x{count}{'.trans' if trans else ''}"
    run(
        [
            *to_shared(2, out.nbytes // 4, THREADS),
            "bar.sync 0;",
            *load(1, 0, 1, THREADS),
            "shl.b32 %v0, %v0, 4;",
            "mov.u32 %v1, shared;",
            "add.s32 %v0, %v0, %v1;",
            *load(0, 10, count, THREADS),
            f"stmatrix.sync.aligned.m8n8.{form}.shared.b16 [%v0], {listed('%v', 10, count)};",
            "bar.sync 0;",
            *from_shared(2, out.nbytes // 4, THREADS),
        ],
        *(given, ROWS, out),
        threads=THREADS,
        shared=out.nbytes,
    )
    want = np.zeros_like(out)
    for thread in range(THREADS):
        warp, lane = divmod(thread, 32)
        for m in range(count):
            rows = ROWS[32 * warp + 8 * m : 32 * warp + 8 * m + 8]
            for half, (row, column) in enumerate(held(lane, trans)):
                want[rows[row], column] = given[thread, m] >> 16 * half & 0xFFFF
    assert np.array_equal(out, want)


def test_a_row_of_ldmatrix_is_aligned_and_within_shared_memory() -> None:
    for row, message in ((8, "aligned"), (1024, "shared memory")):
        lines = [
            "mov.u32 %v0, shared;",
            f"add.s32 %v0, %v0, {row};",
            "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%v10}, [%v0];",
        ]
        with pytest.raises(Fault, match=message):
            run(lines, shared=1024)


def test_ldmatrix_needs_the_whole_warp() -> None:
    lines = [
        "mov.u32 %v0, shared;",
        "setp.lt.u32 %p0, %thread, 16;",
        "@%p0 ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%v10}, [%v0];",
    ]
    with pytest.raises(Fault, match="warp"):
        run(lines, shared=1024)


def test_ldmatrix_reads_what_a_barrier_has_ordered() -> None:
    """Without one, what another warp writes is a race."""
    lines = [
        *to_shared(0, 256, THREADS),
        "mov.u32 %v0, shared;",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%v10, %v11, %v12, %v13}, [%v0+512];",
    ]
    with pytest.raises(Fault, match="race"):
        run(lines, np.zeros(256, np.uint32), threads=THREADS, shared=1024)


# ---- mma.sync --------------------------------------------------------------------------------

SHAPES = {"bf16": "m16n8k16", "f16": "m16n8k16", "tf32": "m16n8k8"}


def a_held(lane: int, kind: str) -> Iterator[tuple[int, int]]:
    """The (row, column) of the elements of A that a lane holds, in the order of its registers."""
    group, member = lane // 4, lane % 4
    if kind == "tf32":
        for i in range(4):
            yield group + 8 * (i % 2), member + 4 * (i // 2)
        return
    for i in range(8):
        row = group if i in (0, 1, 4, 5) else group + 8
        yield row, 2 * member + i % 2 + (8 if i >= 4 else 0)


def b_held(lane: int, kind: str) -> Iterator[tuple[int, int]]:
    """The same of B."""
    group, member = lane // 4, lane % 4
    if kind == "tf32":
        for i in range(2):
            yield member + 4 * i, group
        return
    for i in range(4):
        yield 2 * member + i % 2 + (8 if i >= 2 else 0), group


def d_held(lane: int, registers: int) -> Iterator[tuple[int, int]]:
    """The same of C and D; wgmma's have more columns."""
    for i in range(registers):
        yield lane // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (lane % 4) + i % 2


def mma(kind: str) -> str:
    """The instruction on registers %v0 to %v3 (A), %v4 and %v5 (B), %v6 to %v9 (C and D)."""
    a, b, c = listed("%v", 0, 4), listed("%v", 4, 2), listed("%v", 6, 4)
    shape = SHAPES[kind]
    return f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {c}, {a}, {b}, {c};"


@pytest.mark.parametrize("kind", SHAPES)
def test_mma(kind: str) -> None:
    """Whole numbers, of which every sum is exact."""
    k = 8 if kind == "tf32" else 16
    warps = THREADS // 32
    a, b = RANDOM.integers(-9, 10, (warps, 16, k)), RANDOM.integers(-9, 10, (warps, k, 8))
    c = RANDOM.integers(-99, 100, (warps, 16, 8))
    held_a, held_b, held_c = (
        np.array([[m[thread // 32][at] for at in which(thread % 32)] for thread in range(THREADS)])
        for m, which in (
            (a, lambda lane: a_held(lane, kind)),
            (b, lambda lane: b_held(lane, kind)),
            (c, lambda lane: d_held(lane, 4)),
        )
    )
    out = held_c.astype(np.float32)
    lines = [*load(0, 0, 4, THREADS), *load(1, 4, 2, THREADS), *load(2, 6, 4, THREADS)]
    lines += [mma(kind), *store(2, 6, 4, THREADS)]
    run(lines, bits_of(held_a, kind), bits_of(held_b, kind), out, threads=THREADS)
    want = a @ b + c
    for thread in range(THREADS):
        expected = [want[thread // 32][at] for at in d_held(thread % 32, 4)]
        assert out[thread].tolist() == expected, thread


def test_what_tf32_lacks_of_float32_is_not_read() -> None:
    bits = np.full((32, 4), np.float32(1.0).view(np.uint32) | np.uint32(0x1FFF))
    out = np.zeros((32, 4), np.float32)
    lines = [*load(0, 0, 4), *load(0, 4, 2), *load(1, 6, 4), mma("tf32"), *store(1, 6, 4)]
    run(lines, bits, out)
    assert (out == 8.0).all()


@pytest.mark.parametrize(("added", "units"), [(0.25, 0), (0.75, 1), (-0.25, 0), (-0.5, -1)])
def test_sums_of_mma_are_rounded_once_to_the_nearest(added: float, units: float) -> None:
    """8, whose next numbers are a unit above and half a unit below, and part of a unit."""
    unit = 2.0**-20
    out = np.full((32, 4), added * unit, np.float32)
    bits = np.full((32, 4), 0x3F80, np.uint32)  # of each pair one is 1, the other 0
    lines = [*load(0, 0, 4), *load(0, 4, 2), *load(1, 6, 4), mma("bf16"), *store(1, 6, 4)]
    run(lines, bits, out)
    assert (out == 8.0 + units * unit * (0.5 if units < 0 else 1)).all()


def test_sums_of_other_instructions_are_rounded_otherwise() -> None:
    """Toward zero: who relies on equal sums of mma and wgmma does not get them."""
    sums = np.array([1.0, 1 + 2.0**-24 * 1.5, -1 - 2.0**-24 * 1.5, 2.0**-30, np.inf, -0.0])
    assert fragments.nearest(sums).tolist() == [1, 1 + 2.0**-23, -1 - 2.0**-23, 2.0**-30, np.inf, 0]
    assert fragments.toward_zero(sums).tolist() == [1, 1, -1, 2.0**-30, np.inf, 0]
    assert np.isnan(fragments.toward_zero(np.array([np.nan]))).all()


@pytest.mark.parametrize(
    "other",
    [
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%v0}, {%v0}, {%v0}, {%v0};",
        "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%v0}, {%v0}, {%v0}, {%v0};",
        "ldmatrix.sync.aligned.m8n16.x1.shared.b8 {%v0}, [%v0];",
    ],
)
def test_what_is_not_modeled_is_refused(other: str) -> None:
    with pytest.raises(Missing, match=other.partition(" ")[0].replace(".", r"\.")):
        run([other], shared=64)
