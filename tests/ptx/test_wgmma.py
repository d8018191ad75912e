"""wgmma, element by element, with the tiles and fragments of PTX ISA 9.7.15.5; and its rules."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from tests.ptx.assembly import bits_of, listed, load, run, store, to_shared
from tests.ptx.test_matrix import a_held, d_held
from tests.ptx.tiles import WGMMA, descriptor, placed, tile
from tools.ptx.errors import Fault, Missing

RANDOM = np.random.default_rng(1)


class Form(NamedTuple):
    """How the factors lie: A's rows or sums are contiguous, or it is in registers; B's likewise."""

    n: int
    kind: str
    a: str = "k"
    b: str = "k"
    span: int = 128

    @property
    def depth(self) -> int:
        """Numbers in a sum."""
        return 8 if self.kind == "tf32" else 16

    def instruction(self, add: str = "%p0") -> str:
        """On %d0 or %v500 to %v503 (A), %d1 (B), and the accumulators, %v0 on."""
        a = listed("%v", 500, 4) if self.a == "registers" else "%d0"
        sums = listed("%v", 0, self.n // 2)
        shape = f"m64n{self.n}k{self.depth}.f32.{self.kind}.{self.kind}"
        turned = ", 1" if self.a == "m" else ", 0" if self.a == "k" else ""
        turned = "" if self.kind == "tf32" else turned + f", {int(self.b == 'n')}"
        return f"wgmma.mma_async.sync.aligned.{shape} {sums}, {a}, %d1, {add}, 1, 1{turned};"


FORMS = [
    *(Form(n, kind) for n in (8, 32, 64, 128, 256) for kind in ("bf16", "f16", "tf32")),
    *(Form(64, kind, "k", "k", span) for kind in ("bf16", "tf32") for span in (64, 32)),
    *(Form(128, "bf16", a, b, span) for a in "km" for b in "kn" for span in (128, 64, 32)),
    *(Form(32, kind, "registers", "n") for kind in ("bf16", "f16")),
    *(Form(32, kind, "registers") for kind in ("bf16", "tf32")),
]


class Case(NamedTuple):
    """A form with random factors of two warpgroups, of which each has its own A."""

    form: Form
    threads: int = 256

    def factors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Whole numbers, of which every sum is exact: A, B and what is added to."""
        groups = self.threads // 128
        a = RANDOM.integers(-9, 10, (groups, 64, self.form.depth))
        b = RANDOM.integers(-9, 10, (self.form.depth, self.form.n))
        return a, b, RANDOM.integers(-99, 100, (groups, 64, self.form.n))


def held(matrix: np.ndarray, thread: int, registers: int) -> list[int]:
    """What a thread of a warpgroup has of D [64, n]: a warp has 16 rows."""
    rows = matrix[thread // 128, 16 * (thread // 32 % 4) :]
    return [rows[at] for at in d_held(thread % 32, registers)]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("add", [True, False])
def test_wgmma(form: Form, add: bool) -> None:
    case, threads = Case(form), 256
    a, b, c = case.factors()
    in_registers = form.a == "registers"
    tiles = [tile(bits_of(b.T, form.kind), form.span, form.b == "k", WGMMA)]
    if not in_registers:
        tiles += [tile(bits_of(m, form.kind), form.span, form.a == "k", WGMMA) for m in a]
    words, begins = placed(tiles)
    of_a = np.zeros((threads, 4), np.uint32)
    if in_registers:
        elements = [
            [a[t // 128, 16 * (t // 32 % 4) :][at] for at in a_held(t % 32, form.kind)]
            for t in range(threads)
        ]
        of_a = np.ascontiguousarray(bits_of(np.array(elements), form.kind)).view(np.uint32)
    count = form.n // 2
    out = np.array([held(c, t, count) for t in range(threads)], np.float32)
    lines = [
        *to_shared(0, len(words), threads),
        "fence.proxy.async.shared::cta;",
        "bar.sync 0;",
        *descriptor(1, begins[0], tiles[0].constant),
        *load(2, 500, 4, threads),
        *load(1, 0, count, threads),
        f"setp.eq.u32 %p0, %thread, {'%thread' if add else -1};",
    ]
    if not in_registers:
        lines += [
            *descriptor(0, begins[1], tiles[1].constant),
            *descriptor(2, begins[2], tiles[2].constant),
            "setp.ge.u32 %p1, %thread, 128;",
            "selp.b64 %d0, %d2, %d0, %p1;",
        ]
    lines += ["wgmma.fence.sync.aligned;", form.instruction(), "wgmma.commit_group.sync.aligned;"]
    lines += ["wgmma.wait_group.sync.aligned 0;", *store(1, 0, count, threads)]
    run(lines, words, out, of_a, threads=threads, shared=words.nbytes)
    want = a @ b + (c if add else 0)
    for t in range(threads):
        assert out[t].tolist() == held(want, t, count), t


# ---- what it must not do ---------------------------------------------------------------------

RIGHT = {
    "write": to_shared(0, 4096, 128),
    "fence": ["fence.proxy.async.shared::cta;"],
    "barrier": ["bar.sync 0;"],
    "descriptors": [
        *descriptor(0, 0, 1 << 62 | 64 << 32),
        *descriptor(1, 8192, 1 << 62 | 64 << 32),
        "setp.eq.u32 %p0, %thread, %thread;",
    ],
    "sums": load(1, 0, 32, 128),
    "registers": ["wgmma.fence.sync.aligned;"],
    "multiply": [Form(64, "bf16").instruction()],
    "commit": ["wgmma.commit_group.sync.aligned;"],
    "wait": ["wgmma.wait_group.sync.aligned 0;"],
    "use": store(1, 0, 32, 128),
}
"""A product that keeps all the rules, in its parts."""


def attempt(**changed: list[str]) -> None:
    lines = [line for part in (RIGHT | changed).values() for line in part]
    run(
        lines, np.zeros(4096, np.uint32), np.zeros((128, 32), np.float32), threads=128, shared=2**14
    )


FENCE, BARRIER = "fence.proxy.async.shared::cta;", "bar.sync 0;"
HALF = ["setp.lt.u32 %p2, %thread, 64;", "@%p2 " + FENCE]
"""A fence of two warps: what the others write is not fenced."""


@pytest.mark.parametrize("order", [[FENCE, BARRIER], [BARRIER, FENCE], [FENCE, BARRIER, FENCE]])
def test_the_rules_can_be_kept(order: list[str]) -> None:
    """Who writes may fence it before the barrier, or who reads after it."""
    attempt(fence=[], barrier=order)


def test_several_warps_may_write_the_same() -> None:
    """As Triton does where threads hold the same element; then all of them have to fence it."""
    again = ["mov.u32 %v510, shared;", "st.shared.b32 [%v510], 0;"]
    attempt(write=[*RIGHT["write"], BARRIER, *again])
    with pytest.raises(Fault, match=r"fence\.proxy\.async"):
        attempt(write=[*RIGHT["write"], FENCE, BARRIER, *again], fence=HALF)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fence": []}, "fence.proxy.async"),
        ({"fence": [], "barrier": ["bar.sync 0;", *HALF, "bar.sync 0;"]}, "proxy"),
        ({"fence": HALF}, "proxy"),
        ({"barrier": []}, "barrier"),
        ({"registers": []}, "wgmma.fence"),
        ({"registers": ["wgmma.fence.sync.aligned;", "mov.b32 %v3, 0;"]}, "wgmma.fence"),
        ({"commit": []}, "waited for"),
        ({"wait": []}, "waited for"),
        ({"wait": [], "use": []}, "wait for it"),
        ({"commit": ["wgmma.commit_group.sync.aligned;", "mov.b32 %v500, %v3;"]}, "waited for"),
        ({"commit": ["wgmma.commit_group.sync.aligned;", *to_shared(0, 128, 128)]}, "reads"),
        ({"use": to_shared(0, 128, 128)}, "reads"),
        ({"descriptors": [*RIGHT["descriptors"], "add.s64 %d0, %d0, 960;"]}, "shared memory"),
        ({"multiply": ["setp.lt.u32 %p1, %thread, 64;", "@%p1 " + RIGHT["multiply"][0]]}, "warp"),
    ],
)
def test_a_rule_that_is_broken_is_a_fault(changed: dict[str, list[str]], message: str) -> None:
    with pytest.raises(Fault, match=message):
        attempt(**changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"descriptors": [*RIGHT["descriptors"], "or.b64 %d0, %d0, 562949953421312;"]},
        {"descriptors": [*descriptor(0, 0, 0), *RIGHT["descriptors"][5:]]},
        {"wait": ["wgmma.wait_group.sync.aligned 1;"]},
        {"multiply": [RIGHT["multiply"][0].replace("1, 1, 0, 0", "1, -1, 0, 0")]},
        {"multiply": [RIGHT["multiply"][0].replace(".f32.bf16.bf16", ".f16.f16.f16")]},
    ],
)
def test_what_is_not_modeled_is_refused(changed: dict[str, list[str]]) -> None:
    """A base offset, no swizzle, groups that stay open, negation, sums in 16 bits."""
    with pytest.raises(Missing):
        attempt(**changed)
