"""Loads, stores and atomic operations."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.ptx.harness import PREFIX, kernel, launch
from tools.ptx.errors import Fault, Missing
from tools.ptx.kernel import Kernel
from tools.ptx.machine import execute
from tools.ptx.memory import Memory

Array = NDArray[Any]

WIDTHS = [("v2", "b8"), ("v4", "b8"), ("v2", "b16"), ("v4", "b16"), ("v2", "b32"), ("v4", "b32")]
WIDTHS += [("v8", "b32"), ("v2", "b64"), ("v4", "b64"), ("v8", "b16"), ("", "b128")]
WIDTHS += [("", kind) for kind in ("b8", "u8", "s16", "b16", "u32", "f32", "b64", "s64", "f64")]


def numbers(count: int, dtype: str = "u4", seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, count * np.dtype(dtype).itemsize, dtype=np.uint8).view(dtype)


def aligned(values: Array) -> Array:
    """A copy at a multiple of 64 bytes."""
    room = np.empty(len(values) + 64, np.uint8)
    start = -room.ctypes.data % 64
    room[start : start + len(values)] = values
    return room[start : start + len(values)]


@pytest.mark.parametrize(("vector", "kind"), WIDTHS)
@pytest.mark.parametrize("through", ["global", "shared"])
@pytest.mark.parametrize("active", [32, 13])
def test_every_width_is_copied(vector: str, kind: str, through: str, active: int) -> None:
    """A thread copies its part of an array, by shared memory or not."""
    size, count = int(kind[1:]) // 8, int(vector[1:] or 1)
    span = size * count
    prefix = PREFIX[max(size, 2)]
    names = ", ".join(f"%{prefix}{k + 1}" for k in range(count))
    operand = f"{{{names}}}" if vector else names
    word = f"{vector}.{kind}".lstrip(".")
    source, target = aligned(numbers(32 * span, "u1")), aligned(np.zeros(32 * span, np.uint8))
    body = f"""
    setp.ge.u32 %p1, %r0, {active};
    @%p1 bra DONE;
    mad.wide.u32 %rd30, %r0, {span}, %rd0; mad.wide.u32 %rd31, %r0, {span}, %rd1;
    ld.global.{word} {operand}, [%rd30];
    """
    if through == "shared":
        body += f"""
        mov.u32 %r20, buffer; mad.lo.s32 %r21, %r0, {span}, %r20;
        st.shared.{word} [%r21], {operand}; ld.shared.{word} {operand}, [%r21];
        """
    body += f"st.global.{word} [%rd31], {operand};\nDONE:"
    launch(body, source, target, declarations=f".shared .align 64 .b8 buffer[{32 * span}];")
    assert (target[: active * span] == source[: active * span]).all()
    assert (target[active * span :] == 0).all()


def test_narrow_loads_are_extended_as_their_type_says() -> None:
    source, target = np.arange(224, 256, dtype=np.uint8), np.zeros((3, 32), np.int32)
    body = "cvt.u64.u32 %rd2, %r0; add.s64 %rd3, %rd0, %rd2; mad.wide.u32 %rd4, %r0, 4, %rd1;"
    for k, kind in enumerate(["u8", "s8", "b8"]):
        body += f"ld.global.{kind} %r1, [%rd3]; st.global.b32 [%rd4+{128 * k}], %r1;"
    launch(body, source, target)
    assert (target == [source, source.view(np.int8), source]).all()


def test_parameters_are_packed_and_read_at_any_offset() -> None:
    """Also with an index that differs between threads, as an array in a struct is read."""
    text = """.version 8.7
    .target sm_90a
    .entry k(.param .u8 small, .param .align 8 .b8 block[24], .param .u64 .ptr .global .align 1 out)
    {
        .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .b16 %rs<3>;
        mov.b64 %rd1, block; mov.u32 %r1, %tid.x; and.b32 %r2, %r1, 1;
        mad.wide.u32 %rd2, %r2, 8, %rd1;
        ld.param.v2.u32 {%r3, %r4}, [%rd2+8];
        ld.param.u8 %rs1, [small]; cvt.u32.u16 %r6, %rs1; add.s32 %r3, %r3, %r6;
        ld.param.u32 %r7, [block+4]; add.s32 %r4, %r4, %r7;
        ld.param.u64 %rd3, [out]; mad.wide.u32 %rd4, %r1, 8, %rd3;
        st.global.v2.u32 [%rd4], {%r3, %r4};
        ret;
    }"""
    made = Kernel(text)
    assert made.parameters == {"small": (0, 1), "block": (8, 24), "out": (32, 8)}
    assert made.parameter_bytes == 40
    out = np.zeros((4, 2), np.uint32)
    block = struct.pack("<6I", 9, 1000, 1, 2, 3, 4)
    arguments = [b"\x64", block, struct.pack("<Q", out.ctypes.data)]
    execute(made, 1, arguments, Memory.of([out]), threads=4)
    assert out.tolist() == [[101, 1002], [103, 1004]] * 2
    with pytest.raises(ValueError, match="block: expected 24 bytes, got 4"):
        execute(made, 1, [b"d", b"1234", bytes(8)], Memory([]), threads=4)
    with pytest.raises(ValueError, match="arguments: expected 3, got 1"):
        execute(made, 1, [b"d"], Memory([]), threads=4)


def test_addresses_need_not_be_those_of_the_arrays() -> None:
    """Threads that reach several allocations, far apart and not aligned with their bytes."""
    pieces = [np.arange(n, n + 16, dtype=np.uint32) for n in (0, 100, 200)]
    places = [1 << 40, (1 << 44) + 4, (1 << 44) + 4096]
    made = kernel("""
    mov.u32 %r0, %tid.x; ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1];
    and.b32 %r1, %r0, 1; setp.ne.s32 %p1, %r1, 0; selp.b64 %rd2, %rd1, %rd0, %p1;
    mad.wide.u32 %rd3, %r0, 4, %rd2; ld.global.u32 %r2, [%rd3]; add.s32 %r2, %r2, 1;
    st.global.u32 [%rd3], %r2;
    """)
    memory = Memory((p, a.view(np.uint8)) for p, a in zip(places, pieces, strict=True))
    before = [a.copy() for a in pieces]
    arguments = [p.to_bytes(8, "little") for p in places[:2]]
    execute(made, 1, arguments, memory, threads=16)
    odd = np.arange(16) % 2
    assert (pieces[0] == before[0] + (1 - odd)).all()
    assert (pieces[1] == before[1] + odd).all()
    assert (pieces[2] == before[2]).all()


def test_an_allocation_may_begin_anywhere() -> None:
    """What is aligned are the addresses, not the offsets in an allocation."""
    data = np.arange(40, dtype=np.uint8)
    memory = Memory([(1028, data)])
    addresses = np.array([1032, 1056], np.uint64)
    low, high = memory.load(addresses, np.dtype(np.uint32), 2, "")
    assert low.tobytes() == bytes([4, 5, 6, 7, 28, 29, 30, 31])
    assert high.tobytes() == bytes([8, 9, 10, 11, 32, 33, 34, 35])
    memory.store(addresses, [np.array([1, 2], np.uint64)], "")
    assert data[4:12].tolist() == [1] + [0] * 7 and data[28:36].tolist() == [2] + [0] * 7


def test_memory_refuses_what_it_cannot_hold() -> None:
    data = np.zeros(16, np.uint8)
    with pytest.raises(ValueError, match="overlap"):
        Memory([(64, data), (72, data)])
    with pytest.raises(ValueError, match="uint8"):
        Memory([(64, data.view(np.uint32))])
    with pytest.raises(Fault, match="below every allocation"):
        Memory([]).load(np.zeros(1, np.uint64), np.dtype(np.uint8), 1, "a load")


def test_an_access_may_not_cross_into_the_next_allocation() -> None:
    memory = Memory([(96, np.zeros(4, np.uint8)), (100, np.zeros(28, np.uint8))])
    memory.load(np.array([96, 100], np.uint64), np.dtype(np.uint32), 1, "")
    with pytest.raises(Fault, match="outside"):
        memory.load(np.array([96, 104], np.uint64), np.dtype(np.uint64), 1, "")


ATOMICS = {
    "add.u32": lambda a, b: (a + b) % 2**32,
    "add.s32": lambda a, b: (a + b) % 2**32,
    "min.u32": min,
    "max.u32": max,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "exch.b32": lambda a, b: b,
}


@pytest.mark.parametrize("name", ATOMICS)
@pytest.mark.parametrize("asked", [True, False])
def test_atomic_operations_come_one_after_the_other(name: str, asked: bool) -> None:
    """Threads of two blocks on three words; 29 take part. The old values are those in turn."""
    words, values = numbers(4), numbers(64, seed=1)
    old, expected = np.zeros(64, np.uint32), words.tolist()
    use = "st.global.u32 [%rd6], %r5;" if asked else ""
    body = f"""
    mov.u32 %r20, %ctaid.x; mad.lo.s32 %r1, %r20, 32, %r0;
    rem.u32 %r2, %r1, 3; mad.wide.u32 %rd4, %r2, 4, %rd0;
    mad.wide.u32 %rd5, %r1, 4, %rd1; ld.global.u32 %r3, [%rd5]; mad.wide.u32 %rd6, %r1, 4, %rd2;
    setp.lt.u32 %p1, %r0, 29;
    mov.u32 %r5, 0;
    @%p1 atom.global.gpu.acq_rel.{name} %r5, [%rd4], %r3;
    {use}
    """
    want = np.zeros(64, np.uint32)
    launch(body, words, values, old, grid=2)
    for thread in (t for t in range(64) if t % 32 < 29):
        word = thread % 3
        want[thread] = expected[word] if asked else 0
        expected[word] = ATOMICS[name](expected[word], int(values[thread]))
    assert words.tolist() == expected
    assert (old == want).all()


def test_compare_and_swap_and_reductions() -> None:
    words, old = np.zeros(2, np.uint32), np.zeros(32, np.uint32)
    body = """
    mad.wide.u32 %rd2, %r0, 4, %rd1; add.s32 %r2, %r0, 1;
    atom.global.cas.b32 %r1, [%rd0], %r0, %r2; st.global.u32 [%rd2], %r1;
    red.global.add.u32 [%rd0+4], 2;
    """
    launch(body, words, old)
    assert words.tolist() == [32, 64] and old.tolist() == list(range(32))
    words[0] = 5
    launch(body.replace("[%rd0], %r0, %r2", "[%rd0], 5, %r2"), words, old)
    assert words.tolist() == [1, 128] and old.tolist() == [5] + [1] * 31
    with pytest.raises(Missing, match=r"red\.global\.add\.f32"):
        launch("red.global.add.f32 [%rd0], %r1;", words)
