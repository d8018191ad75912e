"""Planted faults: each kernel runs unchanged, and raises in the executor after one change."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.ptx.harness import launch
from tools.ptx import schedule
from tools.ptx.errors import Fault

Array = NDArray[Any]

COPY = """
    mov.u32 %r1, %ctaid.x; mad.lo.s32 %r2, %r1, 64, %r0; mov.u32 %r9, 100;
    setp.ge.s32 %p1, %r2, %r9; @%p1 bra DONE;
    mul.wide.u32 %rd2, %r2, 16; add.s64 %rd3, %rd0, %rd2; add.s64 %rd4, %rd1, %rd2;
    ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%rd3];
    st.global.v4.b32 [%rd4], {%r4, %r5, %r6, %r7};
    DONE:
"""
"""Copies 16 bytes a thread, 100 threads of two blocks."""

GUARDED = """
    mov.u32 %r1, %ctaid.x; mad.lo.s32 %r2, %r1, 64, %r0;
    setp.lt.s32 %p1, %r2, 100; mad.wide.u32 %rd3, %r2, 16, %rd0;
    mov.u32 %r4, 0;
    @%p1 ld.global.b32 %r4, [%rd3+12];
    @%p1 atom.global.or.b32 %r5, [%rd3], %r4;
    @%p1 st.global.u8 [%rd3+1], %r4;
"""
"""The same with guards."""

EXCHANGE = """
    mov.u32 %r1, buffer; mad.lo.s32 %r2, %r0, 4, %r1; xor.b32 %r3, %r0, 32;
    mad.lo.s32 %r4, %r3, 4, %r1; mad.wide.u32 %rd3, %r0, 4, %rd0;
    st.shared.b32 [%r2], %r0;
    bar.sync 0; // first
    ld.shared.b32 %r5, [%r4];
    bar.sync 0; // second
    st.shared.b32 [%r2], %r5;
    bar.sync 0; // third
    ld.shared.b32 %r6, [%r4];
    st.global.b32 [%rd3], %r6;
"""
"""The warps of a block exchange numbers by shared memory, and again."""

ALL_READ = """
    mov.u32 %r1, buffer; mad.lo.s32 %r2, %r0, 4, %r1; st.shared.b32 [%r2], %r0; bar.sync 0;
    ld.shared.b32 %r3, [buffer];
    bar.sync 0;
    setp.eq.s32 %p1, %r0, 32; @%p1 st.shared.b32 [buffer], %r0;
"""
"""Both warps read a word; then one of them writes it."""

WARP_SUM = """
    setp.lt.s32 %p1, %r0, 32; mov.u32 %r1, %r0; @!%p1 bra DONE;
    shfl.sync.bfly.b32 %r2, %r1, 16, 31, -1; add.s32 %r1, %r1, %r2;
    @%p1 shfl.sync.bfly.b32 %r2, %r1, 8, 31, -1;
    mad.wide.u32 %rd3, %r0, 4, %rd0; st.global.b32 [%rd3], %r2;
    DONE:
"""
"""The first warp of two adds up by shuffles."""

BARRIERS = """
    setp.lt.s32 %p1, %r0, 64; setp.lt.s32 %p2, %r0, 0; mov.u32 %r1, 1;
    @%p2 ret;
    @!%p1 bra ELSE;
    add.s32 %r1, %r1, 1;
    bar.sync 0;
    bra DONE;
    ELSE: bar.sync 1;
    DONE:
"""
"""All threads take the same way to a barrier."""

READ_ONLY = """
    mad.wide.u32 %rd3, %r0, 4, %rd0; mad.wide.u32 %rd4, %r0, 4, %rd1; mov.u32 %r3, 7;
    ld.global.nc.b32 %r1, [%rd3]; ld.global.b32 %r2, [%rd4]; add.s32 %r2, %r2, %r1;
    st.global.b32 [%rd4], %r2; red.global.add.u32 [%rd4], %r3;
"""
"""What is loaded past the caches that see stores is not written."""

UNIFORM = """
    setp.lt.s32 %p1, %r0, 32; @%p1 bra.uni FIRST;
    and.b32 %r1, %r0, 1; setp.eq.s32 %p2, %r1, 0; @%p2 bra DONE; @%p2 bra.uni DONE;
    FIRST: mov.u32 %r1, 0;
    DONE: bar.sync %r1;
"""
"""Whole warps jump, or those threads of one that are there."""

LOOP = """
    mov.u32 %r1, 0;
    AGAIN: add.s32 %r1, %r1, 1; setp.lt.u32 %p1, %r1, 9; @%p1 bra AGAIN;
    ld.param.u64 %rd4, [p0]; ld.param.u64 %rd5, [p1+0];
    mad.wide.u32 %rd6, %r0, 4, %rd4; @%p1 trap; st.global.b32 [%rd6], %r1;
"""


class Planted(NamedTuple):
    """A kernel, what is changed in it, and what the fault says."""

    kernel: str
    old: str
    new: str
    says: str


FAULTS = {
    "no tail": Planted(COPY, "%r9, 100", "%r9, 101", r"outside of every allocation.*ld\.global"),
    "reads before the start": Planted(
        COPY,
        "ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%rd3]",
        "ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%rd3+-16]",
        "below|outside.*ld.global",
    ),
    "writes too far": Planted(COPY, "[%rd4],", "[%rd4+16],", r"outside.*st\.global"),
    "misaligned load": Planted(COPY, "[%rd3];", "[%rd3+8];", r"misaligned access of 16 bytes.*ld"),
    "misaligned store": Planted(COPY, "[%rd4],", "[%rd4+4],", r"misaligned access of 16 bytes.*st"),
    "an address of 32 bits": Planted(
        COPY,
        "add.s64 %rd3, %rd0, %rd2",
        "cvt.u32.u64 %r10, %rd0; cvt.u64.u32 %rd3, %r10; add.s64 %rd3, %rd3, %rd2",
        "allocation",
    ),
    "a negative index": Planted(COPY, "add.s64 %rd3, %rd0, %rd2", "sub.s64 %rd3, %rd2, %rd0", "ld"),
    "guard with another bound": Planted(GUARDED, "%r2, 100", "%r2, 101", r"outside.*ld\.global"),
    "guard lost": Planted(GUARDED, "@%p1 st", "st", r"outside.*st\.global"),
    "guard turned": Planted(GUARDED, "@%p1 atom", "@!%p1 atom", r"outside.*atom"),
    "no first barrier": Planted(
        EXCHANGE, "bar.sync 0; // first", "", "nothing has written|a read after a write"
    ),
    "no second barrier": Planted(EXCHANGE, "bar.sync 0; // second", "", "a write after a read"),
    "no third barrier": Planted(EXCHANGE, "bar.sync 0; // third", "", "a read after a write"),
    "barrier of a warp only": Planted(
        EXCHANGE, "bar.sync 0; // third", "bar.warp.sync -1;", "race"
    ),
    "all write one word": Planted(
        EXCHANGE, "st.shared.b32 [%r2], %r0", "st.shared.b32 [%r1], %r0", "two warps write at once"
    ),
    "out of shared memory": Planted(
        EXCHANGE, "[%r4];\n    bar", "[%r4+128];\n    bar", "outside of shared memory.*ld.shared"
    ),
    "misaligned in shared memory": Planted(
        EXCHANGE,
        "st.shared.b32 [%r2], %r5",
        "st.shared.b32 [%r2+2], %r5",
        "misaligned access of 4 bytes to shared",
    ),
    "shared memory not written": Planted(
        EXCHANGE, "st.shared.b32 [%r2], %r0;", "", "reads shared memory that nothing has written"
    ),
    "one of two readers writes": Planted(
        ALL_READ, "bar.sync 0;\n    setp", "setp", "a write after a read"
    ),
    "half a warp shuffles": Planted(WARP_SUM, "%r0, 32", "%r0, 16", "ended.*shfl"),
    "guarded shuffle of half a warp": Planted(
        WARP_SUM,
        "mov.u32 %r1, %r0; @!%p1 bra",
        "mov.u32 %r1, %r0; @!%p1 bra DONE; setp.lt.s32 %p1, %r0, 16; @!%p1 bra",
        "ended.*shfl",
    ),
    "a guard that differs in a warp": Planted(
        WARP_SUM, "@%p1 shfl", "setp.lt.s32 %p1, %r0, 9; @%p1 shfl", "part of a warp runs @%p1 shfl"
    ),
    "warps at two barriers": Planted(
        BARRIERS, "%r0, 64", "%r0, 32", "different places: bar.sync 0, bar.sync 1"
    ),
    "half a warp at another barrier": Planted(BARRIERS, "%r0, 64", "%r0, 48", "different places"),
    "threads end before a barrier": Planted(
        BARRIERS, "%r0, 0;", "%r0, 5;", "which ended.*bar.sync 0"
    ),
    "a guarded barrier": Planted(
        BARRIERS,
        "bar.sync 0;",
        "setp.lt.s32 %p1, %r0, 32; @%p1 bar.sync 0;",
        "part of a block runs @%p1 bar",
    ),
    "a barrier that no block has": Planted(BARRIERS, "bar.sync 0", "bar.sync 16", "16 barriers"),
    "warps at barriers of two numbers": Planted(
        BARRIERS,
        "bar.sync 0",
        "shr.u32 %r2, %r0, 5; bar.sync %r2",
        "different barriers: bar.sync %r2",
    ),
    "a vote at barriers of two numbers": Planted(
        BARRIERS,
        "bar.sync 0",
        "shr.u32 %r2, %r0, 5; bar.red.or.pred %p1, %r2, %p1",
        "different barriers: bar.red",
    ),
    "a load that sees no stores": Planted(
        READ_ONLY,
        "ld.global.b32 %r2",
        "ld.global.nc.b32 %r2",
        r"that ld.global.nc reads.*st\.global",
    ),
    "a sum where a load sees none": Planted(
        READ_ONLY,
        "red.global.add.u32 [%rd4]",
        "red.global.add.u32 [%rd3]",
        r"nc reads.*red\.global",
    ),
    "a load that sees no stores, after one": Planted(
        READ_ONLY, "%r3, 7;", "%r3, 7; st.global.b32 [%rd3], %r3;", r"nc reads.*ld\.global\.nc"
    ),
    "a branch that divides a warp and should not": Planted(
        UNIFORM, "%r0, 32", "%r0, 33", "does not take one way: @%p1 bra.uni"
    ),
    "a register that is not written": Planted(
        BARRIERS, "mov.u32 %r1, 1;", "", "reads %r1, which nothing"
    ),
    "no end": Planted(LOOP, "add.s32 %r1, %r1, 1", "add.s32 %r1, %r1, 0", "does not end"),
    "beyond the parameters": Planted(LOOP, "[p1+0]", "[p1+8]", "outside of the parameters"),
    "misaligned parameter": Planted(LOOP, "[p1+0]", "[p1+-4]", "misaligned access to parameters"),
    "a trap": Planted(LOOP, "@%p1 trap", "@!%p1 trap", "trap"),
}


def run(body: str) -> Array:
    first, second = (np.arange(400, dtype=np.uint32) for _ in range(2))
    # Nothing else lies near them: numbers around the allocations are in none.
    declarations = ".shared .align 16 .b8 buffer[256];"
    launch(body, first, second, grid=2, threads=64, declarations=declarations)
    return first


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = FAULTS[name]
    monkeypatch.setattr(schedule, "LIMIT", 10_000)
    run(planted.kernel)
    assert planted.kernel.count(planted.old) == 1
    with pytest.raises(Fault, match=planted.says):
        run(planted.kernel.replace(planted.old, planted.new))


def test_lanes_that_were_not_loaded_hold_nan_and_no_address() -> None:
    """Read by others, they spoil the result; a compiler's code drops them."""
    body = """
    setp.lt.s32 %p1, %r0, 8; mad.wide.u32 %rd3, %r0, 4, %rd0;
    @%p1 ld.global.f32 %r1, [%rd3];
    add.f32 %r2, %r1, 0f3F800000;
    st.global.f32 [%rd3], %r2;
    """
    values = np.ones(32, np.float32)
    launch(body, values)
    assert (values[:8] == 2).all() and np.isnan(values[8:]).all()
    by_address = "setp.lt.s32 %p1, %r0, 8; @%p1 mov.b64 %rd3, %rd0; ld.global.b8 %rs1, [%rd3];"
    with pytest.raises(Fault, match="outside"):
        launch(by_address, values)


def test_faults_of_one_launch_leave_no_trace_in_the_next() -> None:
    with pytest.raises(Fault):
        run(FAULTS["no tail"].kernel.replace("%r9, 100", "%r9, 101"))
    assert (run(COPY) == np.arange(400)).all()


def test_a_granule_is_as_small_as_the_smallest_access() -> None:
    """Two warps that write neighboring bytes do not race; on the same byte they do."""
    body = """
    mov.u32 %r1, buffer; shr.u32 %r2, %r0, 5; and.b32 %r3, %r0, 31;
    mad.lo.s32 %r4, %r3, 2, %r1; add.s32 %r4, %r4, %r2;
    st.shared.b8 [%r4], %r0; bar.sync 0; ld.shared.b32 %r5, [buffer+4];
    """
    run(body)
    with pytest.raises(Fault, match="two warps write at once"):
        run(body.replace("add.s32 %r4, %r4, %r2;", ""))
    in_turn = "setp.eq.s32 %p1, %r2, 0; @%p1 st.shared.b8 [%r4], %r0; @!%p1 st.shared.b8 [%r4]"
    run(body.replace("st.shared.b8 [%r4]", in_turn))


def test_warps_may_store_the_same_bits_at_once_and_no_others() -> None:
    """Triton does where threads of several warps hold the same element."""
    body = """
    mov.u32 %r1, buffer; and.b32 %r3, %r0, 31; mad.lo.s32 %r4, %r3, 4, %r1;
    st.shared.b32 [%r4], %r3; bar.sync 0; ld.shared.b32 %r5, [%r4];
    """
    run(body)
    with pytest.raises(Fault, match="two warps write at once"):
        run(body.replace("st.shared.b32 [%r4], %r3", "st.shared.b32 [%r4], %r0"))
    later = "st.shared.b32 [%r4], %r3; setp.eq.s32 %p1, %r0, 40; @%p1 st.shared.b32 [%r4], "
    run(body.replace("st.shared.b32 [%r4], %r3;", later + "%r3;"))
    with pytest.raises(Fault, match="a write after a write"):
        run(body.replace("st.shared.b32 [%r4], %r3;", later + "%r0;"))


def test_the_end_of_shared_memory_and_of_a_wide_access() -> None:
    """The last word may be read, the next may not; warps race in any word of a vector."""
    body = """
    mov.u32 %r1, buffer; mad.lo.s32 %r2, %r0, 4, %r1; st.shared.b32 [%r2], %r0; bar.sync 0;
    ld.shared.b32 %r3, [buffer+252];
    """
    run(body)
    with pytest.raises(Fault, match="at 256 of 256 bytes"):
        run(body.replace("+252", "+256"))
    wide = """
    setp.lt.s32 %p1, %r0, 1; setp.eq.s32 %p2, %r0, 32; mov.u32 %r1, 7;
    @%p1 st.shared.v4.b32 [buffer+16], {%r1, %r1, %r1, %r1};
    @%p2 st.shared.b32 [buffer+32], %r0;
    """
    run(wide)
    with pytest.raises(Fault, match="a write after a write"):
        run(wide.replace("[buffer+32]", "[buffer+28]"))


def test_a_barrier_of_one_block_orders_nothing_in_another() -> None:
    body = EXCHANGE.replace("bar.sync 0; // third", "bar.sync 0;")
    first = "mov.u32 %r9, %ctaid.x; setp.eq.u32 %p1, %r9, 0; @%p1 bar.sync 0;"
    run(body.replace("bar.sync 0; // first", first.replace("%r9, 0", "%r9, %r9")))
    with pytest.raises(Fault, match="a read after a write"):
        run(body.replace("bar.sync 0; // first", first))


def test_a_half_that_nothing_has_written_may_be_packed_and_dropped() -> None:
    """Compilers write half of a register of 64 bits; who uses the other half finds NaN."""
    body = "mov.b32 %r1, 0f40000000; mov.b64 %rd3, {%r1, %r2}; mul.rn.f32x2 %rd4, %rd3, %rd3;"
    body += "mov.b64 {%r3, %r4}, %rd4; st.global.v2.f32 [%rd0], {%r3, %r4};"
    values = np.zeros(2, np.float32)
    launch(body, values)
    assert values[0] == 4 and np.isnan(values[1])
    with pytest.raises(Fault, match="reads %r2, which nothing has written: add"):
        launch("add.s32 %r1, %r2, %r2;", values)
