"""tcgen05, lane by lane, with the layouts of tensor memory in PTX ISA 9.7.16; and its rules."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from tests.ptx.assembly import bits_of, listed, load, run, store, to_shared
from tests.ptx.tiles import TCGEN05, descriptor, placed, tile
from tools.ptx.errors import Fault, Missing

RANDOM = np.random.default_rng(2)
THREADS = 128
ADDRESS, BARRIER, FACTORS = 0, 16, 1024
"""Where shared memory has the address of tensor memory, an mbarrier, and the factors."""

FIRST_WARP = "setp.lt.u32 %p1, %thread, 32;"
ALLOC = "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%v400], {columns};"
DEALLOC = "tcgen05.dealloc.cta_group::1.sync.aligned.b32 %v401, {columns};"
MULTIPLY = "tcgen05.mma.cta_group::1.kind::f16 [%v401+0], %d0, %d1, %v403, %p3;"
COMMIT = "tcgen05.commit.cta_group::1.mbarrier::arrive::one.b64 [%d2];"


class Form(NamedTuple):
    """A product of 16-bit factors: A's rows or sums are contiguous, and B's columns or sums."""

    rows: int
    columns: int
    kind: str = "bf16"
    a: str = "k"
    b: str = "k"
    span: int = 128

    @property
    def descriptor(self) -> int:
        """Of the instruction (table 42): float32 sums, types, transposes, sizes."""
        kind = {"f16": 0, "bf16": 1}[self.kind]
        bits = 1 << 4 | kind << 7 | kind << 10 | (self.a == "m") << 15 | (self.b == "n") << 16
        return bits | self.columns // 8 << 17 | self.rows // 16 << 24

    def place(self, row: int, column: int) -> tuple[int, int]:
        """Thread and register that move an element of D: lanes of the warps, or halves of 16."""
        if self.rows == 128:
            return row, column
        warp, lane = divmod(row, 16)
        half, register = divmod(column, self.columns // 2)
        return 32 * warp + 16 * half + lane, register

    def moved(self, way: str, first: int) -> str:
        """tcgen05.ld or st of all of D, by registers of %v[first] on."""
        count = self.columns if self.rows == 128 else self.columns // 2
        shape = "32x32b" if self.rows == 128 else "16x32bx2"
        half = "" if self.rows == 128 else f", {count}"
        values = listed("%v", first, count)
        operands = f"{values}, [%v402]{half}" if way == "ld" else f"[%v402]{half}, {values}"
        return f"tcgen05.{way}.sync.aligned.{shape}.x{count}.b32 {operands};"


def parts(form: Form, add: bool, tiles: list[int], constants: list[int], words: int) -> dict:
    """A product that keeps all the rules: D is stored, added to, and loaded."""
    count = form.columns if form.rows == 128 else form.columns // 2
    return {
        "write": to_shared(0, words, THREADS),
        "alloc": [
            FIRST_WARP,
            f"mov.u32 %v400, shared; add.s32 %v400, %v400, {ADDRESS};",
            "@%p1 " + ALLOC.format(columns=form.columns),
        ],
        "ordered": ["bar.sync 0;"],
        "address": ["ld.shared.b32 %v401, [%v400];", "bar.sync 0;"],
        "relinquish": ["@%p1 tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;"],
        "lanes": ["shl.b32 %v402, %warp, 21;", "add.s32 %v402, %v402, %v401;"],
        "old": load(1, 0, count, THREADS),
        "store": [form.moved("st", 0)],
        "stored": ["tcgen05.wait::st.sync.aligned;"],
        "fence": ["fence.proxy.async.shared::cta;"],
        "init": [
            f"mov.u32 %v404, shared; add.s32 %v404, %v404, {BARRIER}; setp.eq.u32 %p2, %thread, 0;",
            "@%p2 mbarrier.init.shared::cta.b64 [%v404], 1;",
        ],
        "barrier": ["bar.sync 0;"],
        "descriptors": [
            *descriptor(0, FACTORS + tiles[0], constants[0]),
            *descriptor(1, FACTORS + tiles[1], constants[1]),
            f"mov.b32 %v403, {form.descriptor};",
            f"setp.{'eq' if add else 'ne'}.u32 %p3, %thread, %thread;",
            "cvt.u64.u32 %d2, %v404;",
        ],
        "one": ["@!%p1 bra done;", "elect.sync %v405|%p4, -1;"],
        "multiply": ["@%p4 " + MULTIPLY],
        "commit": ["@%p4 " + COMMIT],
        "done": ["done:"],
        "wait": [
            "{ .reg .pred complete;",
            "again: mbarrier.try_wait.parity.shared.b64 complete, [%v404], 0;",
            "@!complete bra.uni again; }",
        ],
        "load": [form.moved("ld", 0)],
        "loaded": ["tcgen05.wait::ld.sync.aligned;"],
        "use": store(1, 0, count, THREADS),
        "end": ["bar.sync 0;"],
        "inval": ["@%p2 mbarrier.inval.shared::cta.b64 [%v404];"],
        "dealloc": ["@%p1 " + DEALLOC.format(columns=form.columns)],
    }


FORMS = [
    *(
        Form(rows, columns, kind)
        for rows in (64, 128)
        for columns in (32, 64)
        for kind in ("bf16", "f16")
    ),
    *(Form(rows, 128, "bf16", a, b) for rows in (64, 128) for a in "km" for b in "kn"),
    *(Form(64, 64, "bf16", a, a.replace("m", "n"), span) for a in "km" for span in (64, 32)),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("add", [True, False])
def test_mma(form: Form, add: bool) -> None:
    """Whole numbers, of which every sum is exact."""
    a, b = RANDOM.integers(-9, 10, (form.rows, 16)), RANDOM.integers(-9, 10, (16, form.columns))
    c = RANDOM.integers(-99, 100, (form.rows, form.columns))
    tiles = [
        tile(bits_of(a, form.kind), form.span, form.a == "k", TCGEN05),
        tile(bits_of(b.T, form.kind), form.span, form.b == "k", TCGEN05),
    ]
    words, begins = placed(tiles)
    words = np.pad(words, (FACTORS // 4, 0))
    count = form.columns if form.rows == 128 else form.columns // 2
    out = np.zeros((THREADS, count), np.float32)
    for row in range(form.rows):
        for column in range(form.columns):
            out[form.place(row, column)] = c[row, column]
    kept = parts(form, add, begins, [one.constant for one in tiles], len(words))
    run(
        [line for part in kept.values() for line in part],
        words,
        out,
        threads=THREADS,
        shared=words.nbytes,
    )
    want = a @ b + (c if add else 0)
    for row in range(form.rows):
        found = [out[form.place(row, column)] for column in range(form.columns)]
        assert found == want[row].tolist(), row


def test_the_shapes_of_loads_and_stores() -> None:
    """What 32x32b stores, lane by lane, 16x32bx2 finds in either half of the lanes."""
    given = RANDOM.integers(0, 2**32, (THREADS, 32)).astype(np.uint32)
    for half in (0, 16):
        out = np.zeros((THREADS, 8), np.uint32)
        lines = [
            *(FIRST_WARP, "mov.u32 %v400, shared;", "@%p1 " + ALLOC.format(columns=32)),
            *("bar.sync 0;", "ld.shared.b32 %v401, [%v400];"),
            *("shl.b32 %v402, %warp, 21;", "add.s32 %v402, %v402, %v401;"),
            *load(0, 0, 32, THREADS),
            f"tcgen05.st.sync.aligned.32x32b.x32.b32 [%v402], {listed('%v', 0, 32)};",
            "tcgen05.wait::st.sync.aligned;",
            f"add.s32 %v402, %v402, {half << 16 | 3};",
            f"tcgen05.ld.sync.aligned.16x32bx2.x8.b32 {listed('%v', 100, 8)}, [%v402], 20;",
            "tcgen05.wait::ld.sync.aligned;",
            *store(1, 100, 8, THREADS),
            *("bar.sync 0;", "@%p1 " + DEALLOC.format(columns=32)),
        ]
        run(lines, given, out, threads=THREADS, shared=64)
        for thread in range(THREADS):
            warp, lane = divmod(thread, 32)
            first = 3 + 20 * (lane // 16)
            assert (out[thread] == given[32 * warp + half + lane % 16, first : first + 8]).all()


# ---- what it must not do ---------------------------------------------------------------------

FORM = Form(64, 32)
WORDS = (FACTORS + 2**14) // 4


def attempt(**changed: list[str]) -> None:
    right = parts(FORM, True, [0, 2**13], [TCGEN05[128] | 64 << 32] * 2, WORDS)
    assert changed.keys() <= right.keys()
    lines = [line for part in (right | changed).values() for line in part]
    out = np.zeros((THREADS, 16), np.float32)
    run(lines, np.zeros(WORDS, np.uint32), out, threads=THREADS, shared=4 * WORDS)


def test_the_rules_can_be_kept() -> None:
    attempt()


def test_registers_of_a_load_may_be_read_before_its_wait() -> None:
    """A true dependency (9.7.16.6.4.5), also in a loop that loads again before the wait."""
    right = parts(FORM, True, [0, 2**13], [TCGEN05[128] | 64 << 32] * 2, WORDS)
    wait = ["tcgen05.wait::ld.sync.aligned;"]
    attempt(loaded=[], use=[*right["use"], *wait])
    attempt(loaded=[], use=["add.s32 %v3, %v3, 1;", "mov.b32 %v3, 0;", *wait])
    read = [f"add.s32 %v99, %v{k}, %v100;" for k in range(16)]
    again = "setp.lt.u32 %p5, %v100, 3; add.s32 %v100, %v100, 1; @%p5 bra load;"
    loop = ["mov.b32 %v100, 0;", "load:", FORM.moved("ld", 0)]
    attempt(load=loop, loaded=[*read, again, *wait])
    with pytest.raises(Fault, match="overwritten before it was waited for"):
        attempt(load=loop, loaded=[*read[1:], again, *wait])


def test_who_waits_lets_others_go_first() -> None:
    """Though these are further down in the code, where the executor comes last."""
    right = parts(FORM, True, [0, 2**13], [TCGEN05[128] | 64 << 32] * 2, WORDS)
    elect, issue = right["one"][1:], [*right["multiply"], *right["commit"]]
    later = ["ret;", "later:", *elect, *issue, "bra done;"]
    changed = {"one": ["@%p1 bra later;"], "multiply": [], "commit": []}
    attempt(**changed, dealloc=[*right["dealloc"], *later])
    with pytest.raises(Fault, match="wait"):
        attempt(**changed, dealloc=[*right["dealloc"], *later[:-3], "bra done;"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fence": []}, "fence.proxy.async"),
        ({"barrier": []}, "barrier|race|wait::st"),
        ({"ordered": []}, "race"),
        ({"store": []}, "nothing has written"),
        ({"stored": []}, "wait::st"),
        ({"commit": []}, "wait"),
        ({"wait": []}, "has not waited for"),
        ({"wait": [], "load": [FORM.moved("st", 0)], "loaded": []}, "has not waited for"),
        ({"wait": [], "load": to_shared(0, WORDS, THREADS), "loaded": []}, "still reads"),
        ({"loaded": []}, "without tcgen05.wait::ld"),
        ({"loaded": [], "use": [FORM.moved("st", 0)]}, "without tcgen05.wait::ld"),
        ({"loaded": [], "use": ["mov.b32 %v3, 0;"]}, "overwritten before it was waited for"),
        ({"loaded": [], "use": [FORM.moved("ld", 0)]}, "overwritten before it was waited for"),
        (
            {"loaded": [], "use": ["@%p2 add.s32 %v3, %v3, 1;"]},
            "overwritten before it was waited for",
        ),
        ({"init": ["mov.u32 %v404, shared;"]}, "no mbarrier"),
        ({"dealloc": []}, "not deallocated"),
        ({"dealloc": ["@%p1 " + DEALLOC.format(columns=64)]}, "no 64 columns"),
        ({"end": []}, "race"),
        (
            {"alloc": [FIRST_WARP, "mov.u32 %v400, shared;", "@%p1 st.shared.b32 [%v400], 0;"]},
            "not alloc",
        ),
        ({"old": [*load(1, 0, 16, THREADS), "add.s32 %v402, %v402, 1;"]}, "not allocated"),
        ({"lanes": ["mov.b32 %v402, %v401;"]}, "32 lanes of its place"),
        ({"relinquish": ["@%p1 " + ALLOC.format(columns=32)]}, "race|not deallocated"),
        ({"multiply": ["@%p1 " + MULTIPLY]}, "several threads"),
        (
            {"alloc": [FIRST_WARP, "mov.u32 %v400, shared;", "@%p1 " + ALLOC.format(columns=48)]},
            "48",
        ),
        ({"inval": ["@%p2 mbarrier.inval.shared::cta.b64 [%v400];"]}, "no mbarrier"),
    ],
)
def test_a_rule_that_is_broken_is_a_fault(changed: dict[str, list[str]], message: str) -> None:
    with pytest.raises(Fault, match=message):
        attempt(**changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"multiply": [line.replace("kind::f16", "kind::tf32") for line in ["@%p4 " + MULTIPLY]]},
        {"multiply": ["@%p4 " + MULTIPLY.replace("%d0", "[%v402]")]},
        {"multiply": ["xor.b32 %v403, %v403, 8192;", "@%p4 " + MULTIPLY]},
        {"multiply": ["and.b64 %d0, %d0, 2305843009213693951;", "@%p4 " + MULTIPLY]},
        {"load": ["tcgen05.ld.sync.aligned.16x64b.x16.b32 " + listed("%v", 0, 16) + ", [%v402];"]},
    ],
)
def test_what_is_not_modeled_is_refused(changed: dict[str, list[str]]) -> None:
    """TF32, A in tensor memory, negation, no swizzle, another shape of loads."""
    with pytest.raises(Missing):
        attempt(**changed)
