"""Faults planted in the PTX of the cells: each raises in the executor, or gives wrong results.

Places to plant a fault are found by pattern, not by position, so that they also exist in other
versions of the kernels or of Triton. If not, the test reports this and must be adapted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import pytest

from tests.ptx import cells
from tests.ptx.cells import Case
from tools.ptx.errors import Fault

Call = Callable[..., Any]

WGMMA = Case(90, "gluon", "bf16", 64, tiles=1)
HALTING = Case(90, "gluon", "bf16", 64, "relu", steps=2, halting=True, tiles=1)
IN_REGISTERS = Case(90, "triton", "fp16", 64, "silu", tiles=1)
MMA = Case(80, "triton", "bf16", 32, "gelu", tiles=1)
TF32 = Case(80, "gluon", "fp32", 64, "tanh", "float32", tiles=1)
TCGEN05 = Case(100, "triton", "bf16", 64, tiles=1)

FORWARD, BACKWARD, SUM = "forward_kernel", "backward_kernel", "sum_programs"


class Planted(NamedTuple):
    """A fault: what of a kernel's text is replaced, everywhere or only there (an index)."""

    name: str
    case: Case
    kernel: str
    pattern: str
    by: str = ""
    at: int | None = None
    caught: str = ""
    """What the executor or the comparison says of it, or part of that."""


WAIT_LOOP = r"mbarrier\.try_wait[^;]*;\s*@!\w+\s+bra\.uni\s+\w+;"
NO_BARRIER = r"(?s:(?!bar\.sync).)*?"
MASKED = r"@%p\d+ ({}\.global)"
SUMS, FACTORS = r"\{[^}]*\}", r", \{[^}]*\}, \{[^}]*\}, "
TWO_PRODUCTS = rf"(mma\S+ )({SUMS})({FACTORS})({SUMS};)((?:[^;]*;){{0,4}}?[^;]*?)\1\2({FACTORS})\4"
"""Two that add to the same sums."""

SAMPLE = [
    Planted("no proxy fence", WGMMA, BACKWARD, r"fence\.proxy\.async[^;]*;", caught="proxy"),
    # Which fault its absence is depends on the order of Triton's release.
    Planted(
        "no barrier before a product",
        WGMMA,
        FORWARD,
        rf"bar\.sync\s+0;(?={NO_BARRIER}wgmma\.mma_async)",
        caught="barrier|still reads",
    ),
    Planted(
        "sums of W's gradient begin anew", WGMMA, BACKWARD, r"(, )%p\d+(, 1, 1, 1, 1;)", r"\g<1>0\2"
    ),
    Planted("no ldmatrix.trans", MMA, BACKWARD, r"(ldmatrix[^;]*?)\.trans", r"\1", 0),
    Planted(
        "the fragments of B swapped",
        MMA,
        BACKWARD,
        r"(mma\S+ \{[^}]*\}, \{[^}]*\}, \{) ?(%r\d+), (%r\d+)",
        r"\1\3, \2",
        0,
    ),
    Planted("no wait for a product", TCGEN05, BACKWARD, WAIT_LOOP, "", 0, "still reads"),
    Planted(
        "tensor memory is kept",
        TCGEN05,
        BACKWARD,
        r"@%p\d+ tcgen05\.dealloc[^;]*;",
        caught="not deallocated",
    ),
    Planted(
        "programs summed from the last",
        Case(90, "gluon", "bf16", 64),
        SUM,
        r"(mad\.wide\.s32\s+%rd\d+, (%r\d+), 4)",
        r"sub.s32 \2, 8192, \2; \1",
        0,
        "order",
    ),
]

OTHERS = [
    # wgmma
    Planted(
        "no proxy fence at all", WGMMA, FORWARD, r"fence\.proxy\.async[^;]*;", "", None, "proxy"
    ),
    Planted(
        "no barrier after a product",
        WGMMA,
        FORWARD,
        rf"(wgmma\.wait_group{NO_BARRIER})bar\.sync\s+0;",
        r"\1",
        caught="still reads",
    ),
    Planted("no wait", WGMMA, BACKWARD, r"wgmma\.wait_group[^;]*;", "", 0, "waited for"),
    Planted("no commit", WGMMA, BACKWARD, r"wgmma\.commit_group[^;]*;", "", 0, "waited for"),
    Planted("no fence of registers", WGMMA, BACKWARD, r"wgmma\.fence[^;]*;", "", 0, "wgmma.fence"),
    Planted("half the stride", WGMMA, FORWARD, "4611686293305294848", "4611686155866341376"),
    Planted(
        "half a step along the sums",
        WGMMA,
        BACKWARD,
        r"(wgmma\.mma_async\S+ \{[^}]*\}, )(%rd\d+), (%rd\d+)(, %p\d+, 1, 1, 1, 1;)",
        r"sub.s64 \2, \2, 64; sub.s64 \3, \3, 64; \1\2, \3\4",
        1,
    ),
    Planted("W not turned", WGMMA, BACKWARD, ", 1, 1, 0, 1;", ", 1, 1, 0, 0;"),
    Planted("g not turned", WGMMA, BACKWARD, ", 1, 1, 1, 1;", ", 1, 1, 0, 1;"),
    Planted(
        "s rounded toward zero on the way back",
        WGMMA,
        BACKWARD,
        r"cvt\.rn\.bf16x2",
        "cvt.rz.bf16x2",
        0,
        "lost",
    ),
    Planted(
        "stores beyond the last row", WGMMA, BACKWARD, MASKED.format("st"), r"\1", caught="outside"
    ),
    Planted(
        "loads beyond the last row", WGMMA, BACKWARD, MASKED.format("ld"), r"\1", caught="outside"
    ),
    Planted(
        "residuals of the wrong columns",
        HALTING,
        FORWARD,
        r"(shfl\.sync\.bfly\.b32\s+%r\d+, %r\d+, )2",
        r"\g<1>1",
        caught="residual|different places",
    ),
    Planted(
        "no wait, A in registers",
        IN_REGISTERS,
        BACKWARD,
        r"wgmma\.wait_group[^;]*;",
        "",
        0,
        "still reads",
    ),
    # mma
    Planted(
        "f's sums in another order on the way back",
        MMA,
        BACKWARD,
        TWO_PRODUCTS,
        r"\1\2\6\4\5\1\2\3\4",
        caught="lost",
    ),
    Planted("a difference becomes a sum", MMA, BACKWARD, r"sub\.rn\.f32", "add.rn.f32", 0),
    Planted("the sign of 1 - beta", MMA, BACKWARD, r"neg\.s32", "mov.b32", caught="lost"),
    Planted(
        "the halves of a pair swapped",
        MMA,
        BACKWARD,
        r"(cvt\.rn\.bf16x2\.f32\s+%r\d+, )(%r\d+), (%r\d+)",
        r"\1\3, \2",
        0,
    ),
    Planted(
        "stores beyond the last row, forward",
        MMA,
        FORWARD,
        MASKED.format("st"),
        r"\1",
        caught="outside",
    ),
    Planted("no barrier around a transpose", MMA, BACKWARD, r"bar\.sync\s+0;", caught="race"),
    Planted("a product of TF32 left out", TF32, BACKWARD, r"mma\.sync[^;]*;", "", -1, "bound"),
    # tcgen05
    Planted("no wait for the last product", TCGEN05, BACKWARD, WAIT_LOOP, "", -1, "still reads"),
    Planted(
        "no commit to the mbarrier",
        TCGEN05,
        BACKWARD,
        r"@%p\d+ tcgen05\.commit[^;]*;",
        "",
        0,
        "wait for",
    ),
    Planted("no wait::st", TCGEN05, BACKWARD, r"tcgen05\.wait::st[^;]*;", caught="wait::st"),
    Planted(
        "no wait::ld", TCGEN05, BACKWARD, r"tcgen05\.wait::ld[^;]*;", caught="waited for|wait::ld"
    ),
    Planted(
        "every lane multiplies",
        TCGEN05,
        BACKWARD,
        r"@%p\d+ (tcgen05\.mma)",
        r"\1",
        0,
        "several threads",
    ),
    Planted(
        "no proxy fence for tcgen05",
        TCGEN05,
        BACKWARD,
        r"fence\.proxy\.async[^;]*;",
        "",
        0,
        "proxy",
    ),
    Planted("B not turned", TCGEN05, BACKWARD, "68256912", "68191376"),
    Planted(
        "half the stride for tcgen05",
        TCGEN05,
        BACKWARD,
        r"(@%p\d+ tcgen05\.mma[^;]*?, )(%rd\d+), (%rd\d+),",
        rf"sub.s64 \2, \2, {32 << 32}; sub.s64 \3, \3, {32 << 32}; \1\2, \3,",
    ),
    Planted(
        "sums in tensor memory begin anew",
        TCGEN05,
        BACKWARD,
        r"(tcgen05\.mma[^;]*, )%p\d+;",
        r"\g<1>0;",
    ),
    Planted(
        "no mbarrier",
        TCGEN05,
        BACKWARD,
        r"@%p\d+ mbarrier\.init[^;]*;",
        "",
        0,
        "nothing has written|no mbarrier",
    ),
]


def found(planted: Planted) -> str:
    """What is said of a cell with that fault; AssertionError if its kernel has no place for it."""
    places = list[int]()
    try:
        problems = cells.problems(planted.case, partial(plant, planted, places))
    except Fault as fault:
        problems = [str(fault)]
    assert sum(places) > 0, f"{planted.kernel} has nothing like {planted.pattern}: adapt it"
    return "; ".join(problems)


def plant(planted: Planted, places: list[int], text: str) -> str:
    """The text with the fault, if it is of its kernel."""
    if not re.search(rf"\.entry\s+{planted.kernel}\b", text):
        return text
    matches: Sequence[re.Match[str]] = list(re.finditer(planted.pattern, text))
    places.append(len(matches))
    if planted.at is not None:
        matches = [matches[planted.at]] if matches else []
    for match in reversed(matches):
        text = text[: match.start()] + match.expand(planted.by) + text[match.end() :]
    return text


@pytest.mark.parametrize(
    "planted",
    [*SAMPLE, *(pytest.param(planted, marks=pytest.mark.slow) for planted in OTHERS)],
    ids=lambda planted: planted.name,
)
def test_a_planted_fault_is_caught(compiling: Call, planted: Planted) -> None:
    said = compiling(found, planted)
    assert said, "the cell does as it should"
    assert re.search(planted.caught, said)
