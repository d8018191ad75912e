"""Shuffles, reductions, votes and barriers."""

from __future__ import annotations

from functools import reduce
from operator import and_, or_, xor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.ptx.harness import launch
from tools.ptx.errors import Missing

Array = NDArray[Any]


def shuffled(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """The lane that is read, and whether it is in range: the PTX ISA's definition of shfl."""
    distance, clamp, segment = b & 31, c & 31, c >> 8 & 31
    last = (lane & segment) | (clamp & ~segment)
    first = lane & segment
    if mode == "up":
        source, inside = lane - distance, lane - distance >= last
    elif mode == "down":
        source, inside = lane + distance, lane + distance <= last
    elif mode == "bfly":
        source, inside = lane ^ distance, lane ^ distance <= last
    else:
        source = first | (distance & ~segment)
        inside = source <= last
    return (source if inside else lane), inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize(
    ("b", "c"), [(1, 31), (5, 31), (17, 31), (1, 0), (3, 0x1C1F), (6, 0x180F), (35, 0x1807)]
)
def test_shuffles(mode: str, b: int, c: int) -> None:
    values = np.arange(96, dtype=np.uint32) * 7
    out, inside = (np.zeros(96, np.uint32) for _ in range(2))
    launch(
        f"""
        mad.wide.u32 %rd4, %r0, 4, %rd0; mad.wide.u32 %rd5, %r0, 4, %rd1;
        mad.wide.u32 %rd6, %r0, 4, %rd2;
        ld.global.u32 %r1, [%rd4]; shfl.sync.{mode}.b32 %r2|%p1, %r1, {b}, {c}, -1;
        st.global.u32 [%rd5], %r2; selp.u32 %r3, 1, 0, %p1; st.global.u32 [%rd6], %r3;
        """,
        values,
        out,
        inside,
        threads=96,
    )
    for thread in range(96):
        lane, within = shuffled(mode, thread % 32, b, c)
        assert out[thread] == values[thread // 32 * 32 + lane]
        assert inside[thread] == within


def test_a_shuffle_by_lanes_that_differ() -> None:
    rng = np.random.default_rng(0)
    values, lanes = (rng.integers(0, 2**32, 64, dtype=np.uint32) for _ in range(2))
    out = np.zeros(64, np.uint32)
    launch(
        """
        mad.wide.u32 %rd4, %r0, 4, %rd0; mad.wide.u32 %rd5, %r0, 4, %rd1;
        mad.wide.u32 %rd6, %r0, 4, %rd2; ld.global.u32 %r1, [%rd4]; ld.global.u32 %r2, [%rd5];
        shfl.sync.idx.b32 %r3, %r1, %r2, 31, 0xffffffff; st.global.u32 [%rd6], %r3;
        """,
        values,
        lanes,
        out,
        threads=64,
    )
    assert (out == values[np.arange(64) // 32 * 32 + lanes % 32]).all()


REDUCTIONS: dict[str, Any] = {
    "add.u32": lambda v: sum(v) % 2**32,
    "add.s32": lambda v: sum(v) % 2**32,
    "min.u32": min,
    "max.u32": max,
    "min.s32": lambda v: min(np.array(v, np.uint32).view(np.int32).tolist()) % 2**32,
    "max.s32": lambda v: max(np.array(v, np.uint32).view(np.int32).tolist()) % 2**32,
    "and.b32": lambda v: reduce(and_, v),
    "or.b32": lambda v: reduce(or_, v),
    "xor.b32": lambda v: reduce(xor, v),
}


def reduced(name: str, values: np.ndarray) -> np.ndarray:
    """What each thread gets from a reduction over its warp."""
    out = np.zeros(values.size, np.uint32)
    launch(
        f"""
        mad.wide.u32 %rd4, %r0, 4, %rd0; mad.wide.u32 %rd5, %r0, 4, %rd1;
        ld.global.u32 %r1, [%rd4]; mov.u32 %r3, -1;
        redux.sync.{name} %r2, %r1, %r3; st.global.u32 [%rd5], %r2;
        """,
        values,
        out,
        threads=values.size,
    )
    return out


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_of_a_warp(name: str) -> None:
    values = np.random.default_rng(0).integers(0, 2**32, 64, dtype=np.uint32)
    out = reduced(name, values)
    expected = [int(REDUCTIONS[name](warp)) % 2**32 for warp in values.reshape(2, 32).tolist()]
    assert out.reshape(2, 32).tolist() == [[x] * 32 for x in expected]


NAN, NEGATIVE = 0x7FC00123, 0xFF800001
"""Two of the NaN of float32; a reduction returns 0x7FFFFFFF."""


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("max.f32", 5.5, -0.0),
        ("min.f32", -7.5, -2.0),
        ("max.abs.f32", 7.5, 2.0),
        ("min.abs.f32", 0.0, 0.0),
        ("max.NaN.f32", None, None),
        ("min.abs.NaN.f32", None, None),
    ],
)
def test_float_reductions_of_a_warp(name: str, first: float | None, second: float | None) -> None:
    """Warps of numbers and NaN, of -2, -0 and NaN, of NaN alone, and of zeros of both signs."""
    values = np.full((4, 32), NAN, np.uint32)
    values[0, :4] = np.array([5.5, -7.5, 0.0, 1.0], np.float32).view(np.uint32)
    values[1, 7:9] = np.array([-2.0, -0.0], np.float32).view(np.uint32)
    values[2, ::3] = NEGATIVE
    values[3], values[3, 9] = 0, 1 << 31
    out = reduced(name, values)
    zero = -0.0 if name == "min.f32" else 0.0
    numbers = np.array(
        [np.nan if x is None else x for x in (first, second, None, zero)], np.float32
    )
    expected = np.where(np.isnan(numbers), np.uint32(0x7FFFFFFF), numbers.view(np.uint32))
    assert (out.reshape(4, 32) == expected[:, None]).all()


def test_votes() -> None:
    """Lanes below 40, 0, and 64 of two warps."""
    out = np.zeros((3, 5, 64), np.uint32)
    body = ["mad.wide.u32 %rd4, %r0, 4, %rd0;"]
    for row, bound in enumerate((40, 0, 64)):
        body.append(f"setp.lt.u32 %p1, %r0, {bound};")
        for k, mode in enumerate(("all", "any", "uni")):
            body.append(f"vote.sync.{mode}.pred %p2, %p1, -1; selp.u32 %r1, 1, 0, %p2;")
            body.append(f"st.global.u32 [%rd4+{256 * (5 * row + k)}], %r1;")
        body.append("vote.sync.ballot.b32 %r1, %p1, -1; vote.sync.ballot.b32 %r2, !%p1, -1;")
        body.append(f"st.global.u32 [%rd4+{256 * (5 * row + 3)}], %r1;")
        body.append(f"st.global.u32 [%rd4+{256 * (5 * row + 4)}], %r2;")
    launch("\n".join(body), out, threads=64)
    for row, bound in enumerate((40, 0, 64)):
        for warp in range(2):
            lanes = [32 * warp + k < bound for k in range(32)]
            bits = sum(x << k for k, x in enumerate(lanes))
            expected = [all(lanes), any(lanes), len(set(lanes)) == 1, bits, bits ^ 0xFFFFFFFF]
            found = out[row, :, 32 * warp : 32 * warp + 32]
            assert (found == np.array(expected, np.uint32)[:, None]).all()


def test_a_barrier_that_votes() -> None:
    """Blocks of 64 threads, of which all, some and none have the predicate."""
    out = np.zeros((3, 64), np.uint32)
    launch(
        """
        mov.u32 %r1, %ctaid.x; mad.lo.s32 %r2, %r1, 64, %r0; mad.wide.u32 %rd4, %r2, 4, %rd0;
        mul.lo.s32 %r3, %r1, 32; setp.ge.u32 %p1, %r0, %r3;
        bar.red.and.pred %p2, 0, %p1; barrier.cta.red.aligned.or.pred %p3, 0, !%p1;
        barrier.sync.aligned 0, 64;
        selp.u32 %r4, 1, 0, %p2; selp.u32 %r5, 2, 0, %p3; add.s32 %r6, %r4, %r5;
        st.global.u32 [%rd4], %r6;
        """,
        out,
        grid=3,
        threads=64,
    )
    assert (out == [[1], [2], [2]]).all()


def test_active_lanes() -> None:
    out = np.zeros(32, np.uint32)
    launch(
        """
        mad.wide.u32 %rd4, %r0, 4, %rd0; setp.lt.u32 %p1, %r0, 5; @!%p1 bra DONE;
        activemask.b32 %r1; st.global.u32 [%rd4], %r1;
        DONE:
        """,
        out,
    )
    assert out.tolist() == [31] * 5 + [0] * 27


@pytest.mark.parametrize(
    "text",
    [
        "shfl.sync.bfly.b32 %r2, %r0, 1, 31, 0xffff;",
        "vote.sync.all.pred %p1, %p2, 1;",
        "redux.sync.add.u32 %r2, %r0, 15;",
        "bar.sync 0, 32;",
        "bar.warp.sync 3;",
    ],
)
def test_a_part_of_a_warp_or_a_block_is_not_modeled(text: str) -> None:
    with pytest.raises(Missing, match=text.split(maxsplit=1)[0]):
        launch(f"setp.eq.s32 %p2, %r0, 0; {text}", threads=64)


def test_blocks_whose_last_warp_is_not_whole() -> None:
    with pytest.raises(Missing, match="40 threads"):
        launch("shfl.sync.bfly.b32 %r2, %r0, 1, 31, -1;", threads=40)
