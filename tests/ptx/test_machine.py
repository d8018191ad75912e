"""Control flow, guards, several blocks, shared memory, and the syntax of kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.ptx.harness import HEADER, kernel, launch
from tools.ptx.errors import Missing
from tools.ptx.kernel import Kernel
from tools.ptx.machine import Machine, execute
from tools.ptx.memory import Memory

Array = NDArray[Any]

PLACE = "mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mad.lo.s32 %r3, %r1, %r2, %r0;"
PLACE += " mad.wide.u32 %rd9, %r3, 4, %rd0;"


def test_threads_loop_as_often_as_each_has_to() -> None:
    """The Collatz steps of every number: loops and branches that differ in all threads."""
    out = np.zeros(96, np.uint32)
    body = f"""{PLACE}
    add.s32 %r4, %r3, 1; mov.u32 %r5, 0;
    LOOP: setp.eq.u32 %p1, %r4, 1; @%p1 bra STOP;
    and.b32 %r6, %r4, 1; setp.eq.u32 %p2, %r6, 0; @%p2 bra HALF;
    mad.lo.s32 %r4, %r4, 3, 1; bra.uni NEXT;
    HALF: shr.u32 %r4, %r4, 1;
    NEXT: add.s32 %r5, %r5, 1; bra LOOP;
    STOP: st.global.u32 [%rd9], %r5;
    """
    launch(body, out, grid=3)

    def steps(n: int) -> int:
        return 0 if n == 1 else 1 + steps(3 * n + 1 if n % 2 else n // 2)

    assert out.tolist() == [steps(n) for n in range(1, 97)]


def test_instructions_are_counted_by_thread() -> None:
    out = np.zeros(64, np.uint32)
    body = f"{PLACE} setp.lt.u32 %p1, %r0, 8; @!%p1 bra DONE; mov.u32 %r5, 7; not.b32 %r6, %r5;"
    body += "\nDONE:"
    # Seven before the branch, with the parameter and %r0; then two, of eight threads. Branches do
    # not count.
    assert launch(body, out, grid=2) == 2 * (32 * 7 + 8 * 2)


@pytest.mark.parametrize("at_once", [1, 64, 200, 1 << 20])
def test_blocks_are_the_same_however_many_run_at_once(at_once: int) -> None:
    """A block sums its threads' numbers in shared memory, by a tree with barriers."""
    values = np.random.default_rng(0).integers(0, 1000, 64 * 7, dtype=np.uint32)
    sums = np.zeros(7, np.uint32)
    launch(SUM_OF_BLOCK, values, sums, grid=7, threads=64, declarations=BUFFER, at_once=at_once)
    assert (sums == values.reshape(7, 64).sum(1)).all()


BUFFER = ".shared .align 4 .b8 buffer[256];"
SUM_OF_BLOCK = f"""{PLACE}
    ld.global.u32 %r4, [%rd9];
    mov.u32 %r5, buffer; mad.lo.s32 %r6, %r0, 4, %r5;
    st.shared.u32 [%r6], %r4;
    mov.u32 %r7, 32;
    LOOP: bar.sync 0;
    setp.ge.u32 %p1, %r0, %r7; @%p1 bra NEXT;
    mad.lo.s32 %r8, %r7, 4, %r6; ld.shared.u32 %r10, [%r8]; ld.shared.u32 %r11, [%r6];
    add.s32 %r11, %r11, %r10; st.shared.u32 [%r6], %r11;
    NEXT: shr.u32 %r7, %r7, 1; setp.ne.u32 %p2, %r7, 0; @%p2 bra LOOP;
    setp.ne.u32 %p3, %r0, 0; @%p3 bra DONE;
    mad.wide.u32 %rd10, %r1, 4, %rd1; st.global.u32 [%rd10], %r11;
    DONE:
"""


def test_some_blocks_of_a_grid_run() -> None:
    out = np.zeros(32 * 9, np.uint32)
    body = f"{PLACE} mov.u32 %r4, %nctaid.x; st.global.u32 [%rd9], %r4;"
    launch(body, out, grid=9, blocks=[8, 2, 3])
    assert out.reshape(9, 32).tolist() == [[9 * (k in (2, 3, 8))] * 32 for k in range(9)]


def test_a_grid_too_large_to_run_is_run_in_part() -> None:
    """Blocks near 2^31, at addresses that no array of this machine has."""
    made = kernel(
        f"ld.param.u64 %rd0, [p0]; mov.u32 %r0, %tid.x; {PLACE} st.global.u32 [%rd9], 5;", ["u64"]
    )
    grid, base = 2**31 - 1, 1 << 44
    last = np.zeros(32, np.uint32)
    memory = Memory([(base + 4 * (32 * (grid - 1) % 2**32), last.view(np.uint8))])
    execute(made, grid, [base.to_bytes(8, "little")], memory, threads=32, blocks=[grid - 1])
    assert (last == 5).all()


def test_guards_leave_what_other_threads_hold() -> None:
    out = np.zeros(64, np.uint32)
    body = f"""{PLACE}
    mov.u32 %r4, 100; setp.lt.u32 %p1, %r0, 10; setp.lt.u32 %p2, %r0, 0; setp.ge.u32 %p3, %r0, 0;
    @%p1 add.s32 %r4, %r4, %r0;
    @!%p1 add.s32 %r4, %r4, 1000;
    @%p2 mov.u32 %r4, 0;
    @%p3 add.s32 %r4, %r4, 1;
    st.global.u32 [%rd9], %r4;
    """
    launch(body, out, grid=2)
    assert out.tolist() == [101 + k if k < 10 else 1101 for k in range(32)] * 2


def test_guards_within_a_branch() -> None:
    out = np.zeros(32, np.uint32)
    body = f"""{PLACE}
    mov.u32 %r4, 1; setp.lt.u32 %p1, %r0, 20; setp.ge.u32 %p2, %r0, 10;
    @!%p1 bra DONE;
    @%p2 add.s32 %r4, %r4, 1;
    add.s32 %r4, %r4, 10;
    DONE: st.global.u32 [%rd9], %r4;
    """
    launch(body, out)
    assert out.tolist() == [11] * 10 + [12] * 10 + [1] * 12


def test_threads_that_return_early() -> None:
    out = np.zeros(32, np.uint32)
    launch(f"{PLACE} setp.ge.u32 %p1, %r0, 3; @%p1 ret; st.global.u32 [%rd9], 1; exit;", out)
    assert out.tolist() == [1] * 3 + [0] * 29


def test_threads_wait_at_a_barrier_for_those_that_jump_back_to_it() -> None:
    out = np.zeros(64, np.uint32)
    body = f"""{PLACE}
    setp.lt.u32 %p1, %r0, 40; mov.u32 %r4, 1; @!%p1 bra FAR;
    MEET: bar.sync 0; add.s32 %r4, %r4, 1; st.global.u32 [%rd9], %r4; ret;
    FAR: mov.u32 %r4, 10; bra.uni MEET;
    """
    launch(body, out, threads=64)
    assert out.tolist() == [2] * 40 + [11] * 24


def test_special_registers() -> None:
    out = np.zeros((8, 64), np.uint32)
    names = ["tid.x", "ntid.x", "ctaid.x", "nctaid.x", "laneid", "warpid", "tid.y", "ntid.z"]
    body = f"{PLACE} "
    for k, name in enumerate(names):
        body += f"mov.u32 %r4, %{name}; st.global.u32 [%rd9+{256 * k}], %r4;"
    launch(body.replace("mul.wide", "mul.wide"), out, threads=64, grid=1)
    thread = np.arange(64)
    expected = [thread, 64, 0, 1, thread % 32, thread // 32, 0, 1]
    assert (out == [np.broadcast_to(x, 64) for x in expected]).all()
    with pytest.raises(Missing, match="%clock"):
        launch("mov.u32 %r4, %clock;")


def test_names_of_inner_scopes_are_their_own() -> None:
    """The same names twice, with other types, and labels, as inline assembly brings them."""
    out = np.zeros(32, np.uint32)
    body = f"""{PLACE}
    {{ .reg .b32 tmp; .reg .pred done; mov.u32 tmp, 3; mov.u32 %r5, 0;
    again: add.s32 %r5, %r5, 1; setp.eq.u32 done, %r5, tmp; @!done bra again; }}
    {{ .reg .b16 tmp; .reg .pred done; mov.b16 tmp, 7; cvt.u32.u16 %r6, tmp;
    again: add.s32 %r6, %r6, 1; setp.ge.u32 done, %r6, 20; @!done bra.uni again; }}
    add.s32 %r5, %r5, %r6; st.global.u32 [%rd9], %r5; // a comment; with a semicolon
    """
    launch(body, out)
    assert (out == 23).all()


def test_packing_and_unpacking() -> None:
    values = np.random.default_rng(0).integers(0, 2**32, 64, dtype=np.uint32)
    out = np.zeros((32, 4), np.uint32)
    launch(
        """
        mad.wide.u32 %rd2, %r0, 8, %rd0; ld.global.b64 %rd3, [%rd2];
        mov.b64 {%r1, %r2}, %rd3; mov.b32 {%rs1, _}, %r1; mov.b32 {_, %rs2}, %r2;
        mov.b32 %r3, {%rs2, %rs1}; mov.b64 %rd4, {%r2, 5};
        mad.wide.u32 %rd5, %r0, 16, %rd1; st.global.v2.b32 [%rd5], {%r3, %r1};
        st.global.b64 [%rd5+8], %rd4;
        """,
        values,
        out,
    )
    low, high = values[::2], values[1::2]
    packed = (high >> np.uint32(16)) | low << np.uint32(16)
    assert (out == np.stack([packed, low, high, np.full(32, 5, np.uint32)], 1)).all()


def test_what_orders_memory_alone_does_nothing_here() -> None:
    out = np.zeros(32, np.uint32)
    body = f"""cvta.to.global.u64 %rd0, %rd0; {PLACE}
    membar.gl; fence.acq_rel.gpu; fence.sc.sys;
    st.global.u32 [%rd9], %r0;
    """
    launch(body, out)
    assert out.tolist() == list(range(32))


def test_immediates() -> None:
    literals = ["0x7b", "-1", "017", "12U", "0b101", "0f3F800000", "2147483648"]
    wanted = [0x7B, 2**32 - 1, 15, 12, None, 0x3F800000, 2**31]
    for literal, want in zip(literals, wanted, strict=True):
        out = np.zeros(32, np.uint32)
        body = f"{PLACE} mov.b32 %r4, {literal}; st.global.u32 [%rd9], %r4;"
        if want is None:
            with pytest.raises(Missing, match=literal):
                launch(body, out)
        else:
            launch(body, out)
            assert (out == want).all(), literal


def test_shared_memory_is_laid_out_as_declared() -> None:
    """Static arrays first, aligned; the dynamic one begins where they end."""
    text = f"""{HEADER}
    .extern .shared .align 16 .b8 dynamic[];
    .visible .entry k()
    .reqntid 32
    {{
        .reg .b32 %r<4>;
        .shared .align 1 .b8 first[3]; .shared .align 8 .f64 second[2][2];
        ret;
    }}"""
    made = Kernel(text)
    assert made.shared_names == {"first": 0, "second": 8, "dynamic": 48}
    assert made.shared_bytes == 48 and made.threads == 32
    with pytest.raises(ValueError, match="expected 32, got 64"):
        execute(made, 1, [], Memory([]), threads=64)


def test_threads_of_a_block_must_be_known() -> None:
    with pytest.raises(ValueError, match="expected a number"):
        execute(kernel("", []), 1, [], Memory([]))


def test_what_threads_hold_that_do_not_run_is_no_fault() -> None:
    """Divisors, addresses and members that only some threads have set."""
    out = np.zeros(32, np.uint32)
    body = f"""{PLACE}
    setp.lt.u32 %p1, %r0, 7; mov.u32 %r4, 0; mov.u64 %rd2, 0; @!%p1 bra DONE;
    mov.u32 %r4, 3; mov.b64 %rd2, p0; ld.param.u64 %rd3, [%rd2];
    rem.u32 %r5, %r0, %r4; mad.wide.u32 %rd4, %r0, 4, %rd3; st.global.u32 [%rd4], %r5;
    DONE:
    """
    launch(body, out)
    assert out.tolist() == [0, 1, 2, 0, 1, 2, 0] + [0] * 25


def test_an_entry_is_found_by_its_name() -> None:
    text = HEADER + ".entry one() { ret; }\n.visible .entry two(.param .u32 n)\n{ ret; }"
    assert Kernel(text).name == "one" and Kernel(text, "two").parameters == {"n": (0, 4)}
    with pytest.raises(ValueError, match="three"):
        Kernel(text, "three")


def test_a_kernel_is_compiled_once() -> None:
    made = kernel("", [])
    assert execute(made, 4, [], Memory([]), threads=32) == 0
    machine = made.machine
    assert execute(made, 4, [], Memory([]), threads=64) == 0
    assert made.machine is machine and isinstance(machine, Machine)


MISSING = [
    "add.cc.u32 %r1, %r0, %r0;",
    "add.sat.s32 %r1, %r0, %r0;",
    "add.rn.sat.f64 %rd1, %rd2, %rd2;",
    "mad.lo.cc.u32 %r1, %r0, %r0, %r0;",
    "mul.f32.rn %r1, %r0, %r0;",
    "fma.f32 %r1, %r0, %r0, %r0;",
    "fma.rn.relu.f32 %r1, %r0, %r0, %r0;",
    "min.xorsign.abs.f32 %r1, %r0, %r0;",
    "div.rz.f32 %r1, %r0, %r0;",
    "sqrt.rz.f32 %r1, %r0;",
    "cvt.f16.f32 %rs1, %r0;",
    "cvt.rs.f16x2.f32 %r1, %r0, %r0, %r0;",
    "cvt.rn.satfinite.e4m3x2.f32 %rs1, %r0, %r0;",
    "cvt.rn.f32.f16 %r1, %rs1;",
    "cvta.shared.u64 %rd1, %rd1;",
    "cvta.to.shared.u64 %rd1, %rd1;",
    "setp.eq.ftz.f64 %p1, %rd1, %rd1;",
    "setp.lt.b32 %p1, %r0, %r0;",
    "prmt.b32.f4e %r1, %r0, %r0, %r0;",
    "ld.b32 %r1, [%rd1];",
    "ld.local.b32 %r1, [%r0];",
    "ld.global.L2::cache_hint.b32 %r1, [%rd1], %rd2;",
    "ld.global.L1::evict_often.b32 %r1, [%rd1];",
    "ld.global.L2::96B.b32 %r1, [%rd1];",
    "ld.shared.nc.b32 %r1, [%r0];",
    "st.global.nc.b32 [%rd1], %r1;",
    "ld.global.v4.b32 {%r1, %r2}, [%rd1];",
    "ld.global.b32 %rs1, [%rd1];",
    "st.async.b32 [%rd1], %r1;",
    "st.global.b32 [%rd1+%rd2], %r1;",
    "atom.global.inc.u32 %r1, [%rd1], %r2;",
    "atom.shared.add.u32 %r1, [%rd1], %r2;",
    "shfl.bfly.b32 %r1, %r0, 1, 31;",
    "bar.arrive 0, 64;",
    "membar.proxy.alias;",
    "mov.u32 %r1, nowhere;",
    "mov.f32 %r1, 1;",
    "call foo;",
    "frobnicate.b32 %r1;",
    "bra.convergent DONE;",
    "brx.idx %r1, table;",
]


@pytest.mark.parametrize("text", MISSING)
def test_what_is_not_modeled_is_named(text: str) -> None:
    """Before anything runs, also where no thread would come."""
    with pytest.raises(Missing) as caught:
        launch(f"bra DONE; {text}\nDONE:")
    assert text.rstrip(";") in str(caught.value)


def test_a_stack_is_declared_but_not_used() -> None:
    """Triton 3.8 declares one in every kernel."""
    launch(".local .align 16 .b8 depot[16];")
    for use in ("mov.b64 %rd1, depot;", "ld.local.b32 %r1, [depot];"):
        with pytest.raises(Missing, match="depot"):
            launch(f".local .align 16 .b8 depot[16];\n{use}")


@pytest.mark.parametrize("word", [".reqnctapercluster", ".explicitcluster", ".maxclusterrank"])
def test_clusters_of_blocks_are_not_modeled(word: str) -> None:
    with pytest.raises(Missing, match=word):
        Kernel(f"{HEADER}.entry k()\n.reqntid 32\n{word} 2\n{{ ret; }}")
