"""Faults planted in nvcc's PTX of csrc/cuda, and in its host code's launches, are all detected.

An edit that finds nothing to change fails: nvcc then generates other code, and the edit must be
adapted.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest

from tests.ops.fuzz_example import Example
from tests.ptx import cases
from tests.ptx.sparse import Run
from tests.ptx.test_cuda_grids import call_of
from tests.ptx.test_cuda_ops import gpu
from tools.ptx.cuda.compiled import ARCHS
from tools.ptx.cuda.gpu import Gpu
from tools.ptx.cuda.recorder import Launch
from tools.ptx.errors import Fault

pytestmark = pytest.mark.usefixtures("one_thread")

GENERAL, SHIFT = {"beta": 0.7312}, {"beta": 0.5}
"""For the forms of the exact step."""


@dataclass(frozen=True)
class Edit:
    """Replaces `pattern` by `by` in all kernels of a family, or in its first `count` places."""

    name: str
    op: str
    family: str
    pattern: str
    by: str | Callable[[re.Match[str]], str]
    numbers: dict[str, Any] = field(default_factory=dict)
    count: int = 0


V4 = r"(st\.global\.v)4(\.\w+ \[[^]]+\], \{)(%\w+), (%\w+), (%\w+), (%\w+)\}"

# nvcc puts four bytes of digits together by a permutation or by shifts.
OTHER_BYTES = (
    r"0x5410U|(shl\.b32 %r\d+, %r\d+), 24;",
    lambda found: f"{found[1]}, 16;" if found[1] else "0x1054U",
)

EDITS = [
    # vectors
    Edit("two of four numbers stored", "update_", "half_step", V4, r"\g<1>2\2\3, \4}"),
    Edit(
        "a vector stored in another order", "invert_", "half_step", V4, r"\g<1>4\2\4, \3, \5, \6}"
    ),
    Edit("a seed stored in another order", "adjoint_", "adjoint", V4, r"\g<1>4\2\3, \4, \6, \5}"),
    # bounds and leaves
    Edit("a vector over the end", "update_", "half_step", r" 4;(\nsetp\.le\.s64)", r" 3;\1"),
    Edit("an element over the end", "invert_", "half_step", r"setp\.ge\.s64", "setp.gt.s64"),
    Edit("the tail left out", "quantize", "quantize", r"setp\.lt\.s64", "setp.eq.s64"),
    Edit("the leaf before", "update_.list", "half_step", r"setp\.ge\.u32", "setp.gt.u32"),
    Edit("the first leaf alone", "adjoint_.list", "adjoint", r"@%p\d+ bra \$L__BB\d+_1;", ""),
    Edit(
        "a block more that inverts",
        "invert_z_adjoint_y_",
        "pass",
        r"setp\.ge\.u32 %p1,",
        "setp.gt.u32 %p1,",
    ),
    Edit("the next channel", "update_.channels", "channel", r"rem\.u32", "div.u32"),
    # arithmetic
    Edit("quantize truncates", "quantize", "quantize", r"cvt\.rni\.s32", "cvt.rzi.s32"),
    Edit(
        "f is truncated", "update_exact_", "exact_kernel", r"cvt\.rni\.s32", "cvt.rzi.s32", GENERAL
    ),
    Edit(
        "a product fused into a sum",
        "update_",
        "half_step",
        r"mul\.rn\.f32 (%f\d+), (%f\d+, %f\d+);\nadd\.f32 (%f\d+), (%f\d+), \1;",
        r"fma.rn.f32 \3, \2, \4;",
    ),
    Edit(
        "the reciprocal rounded down",
        "update_exact_",
        "exact_kernel",
        r", 2147483648;",
        ", 0;",
        GENERAL,
    ),
    Edit(
        "another reciprocal shift",
        "invert_exact_",
        "exact_kernel",
        r"(shr\.u64 .*), 30;",
        r"\1, 29;",
        GENERAL,
    ),
    Edit(
        "a shift without the sign", "update_exact_", "exact_kernel", r"shr\.s32", "shr.u32", SHIFT
    ),
    Edit(
        "a cast without the sign",
        "update_exact_",
        "exact_kernel",
        r"cvt\.rn\.f32\.s32",
        "cvt.rn.f32.u32",
        SHIFT,
    ),
    Edit("less what joins", "invert_y_adjoint_z0_", "pass", r"add\.f32", "sub.f32"),
    Edit(
        "the factors swapped",
        "adjoint_",
        "adjoint",
        r"(param\.v2\.f32 \{)(%f\d+), (%f\d+)",
        r"\1\3, \2",
    ),
    # digits and flags
    Edit("digits in another order", "update_exact_", "exact_kernel", *OTHER_BYTES, SHIFT),
    Edit(
        "the digits beside",
        "invert_exact_",
        "exact_kernel",
        r"(bfe\.u32 .*), 8, 8;",
        r"\1, 16, 8;",
        SHIFT,
    ),
    Edit("no flag", "update_exact_", "exact_kernel", r"atom\.global\.or\.b32 [^;]*;", "", SHIFT),
    # a block that works together
    Edit("no barrier", "residual", "residual", r"bar\.sync 0;", "", count=1),
    Edit("no barriers between the norms", "residual", "norms", r"bar\.sync 0;", "", count=3),
    Edit(
        "a barrier for half",
        "residual",
        "residual",
        r"(\$L__BB\d+_\d+:)\n(bar\.sync 0;)",
        r"\2\n\1",
    ),
    Edit("another column", "residual", "residual", r"\+1024\]", "+1028]"),
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name.replace(" ", "-"))
def test_faults_in_ptx(edit: Edit) -> None:
    changed = 0

    def change(name: str, text: str) -> str:
        nonlocal changed
        if name.startswith(edit.family):
            text, places = re.subn(edit.pattern, edit.by, text, count=edit.count)
            changed += places
        return text

    device = gpu(ARCHS[-1]).edited(change)
    assert changed, f"{edit.name}: nothing to change in {edit.family}"
    assert noticed(device, edit.op, edit.numbers), f"{edit.name} was not noticed"


def test_nothing_is_planted() -> None:
    """Without an edit, no call fails."""
    device = gpu(ARCHS[-1]).edited(lambda name, text: text)
    for op, numbers in {(edit.op, tuple(edit.numbers.items())) for edit in EDITS}:
        assert not noticed(device, op, dict(numbers), count=1)


BYTES = r"(shl\.b64 (%rd\d+), %rd\d+, [1-4];)"


@pytest.mark.parametrize("label", ["update_.list", "invert_y_adjoint_z_.list", "quantize.list"])
def test_offsets_of_32_bits(label: str) -> None:
    """In bytes: a leaf of more than 2^32 of them notices."""

    def change(name: str, text: str) -> str:
        return re.sub(BYTES, r"\1\nand.b64 \2, \2, 4294967295;", text)

    device = gpu(ARCHS[-1]).edited(change)
    with pytest.raises((AssertionError, Fault)):
        Run(device, call_of(label, vectors=True), [17, 2**33 + 5]).check()


# ---- the host code ---------------------------------------------------------------------------


class Misled(Gpu):
    """A GPU that is told of other launches than the host code makes."""

    def __init__(self, device: Gpu, change: Callable[[Launch], Launch]) -> None:
        vars(self).update(vars(device))
        self.change = change

    def launch(self, launch: Launch, *rest: Any) -> None:
        super().launch(self.change(launch), *rest)


def with_bytes(launch: Launch, at: int, change: Callable[[int], int], size: int = 8) -> Launch:
    """The launch with another number at a place of its only argument."""

    def arguments(sizes: list[int]) -> list[bytes]:
        given = bytearray(launch.arguments(sizes)[0])
        number = change(int.from_bytes(given[at : at + size], "little"))
        given[at : at + size] = number.to_bytes(size, "little")
        return [bytes(given)]

    return replace(launch, arguments=arguments)


# Behind the three numbers of a float step comes the first leaf: four pointers, the size, whether
# vectors are allowed. Leaves of residual come first, with three pointers.
HOST = {
    "a block too few": ("update_.list", lambda x: replace(x, grid=(x.grid[0] - 1, 1, 1))),
    "a block too many": ("update_.list", lambda x: replace(x, grid=(x.grid[0] + 1, 1, 1))),
    "half of the threads": ("update_", lambda x: replace(x, block=(128, 1, 1))),
    "vectors in every case": ("invert_", lambda x: with_bytes(x, 16 + 40, lambda _: 1, 1)),
    "vectors in no case": ("invert_", lambda x: with_bytes(x, 16 + 40, lambda _: 0, 1)),
    "an element more": ("update_", lambda x: with_bytes(x, 16 + 32, lambda n: n + 1)),
    "an element less": ("update_", lambda x: with_bytes(x, 16 + 32, lambda n: n - 1)),
    "no cast": ("update_", lambda x: with_bytes(x, 16 + 16, lambda _: 0)),
    "the next element": ("residual", lambda x: with_bytes(x, 0, lambda n: n + 8)),
}


@pytest.mark.parametrize("name", HOST)
def test_faults_of_the_host_code(name: str) -> None:
    op, change = HOST[name]
    assert noticed(Misled(gpu(ARCHS[-1]), change), op, {}), f"{name} was not noticed"


# ---- the calls -------------------------------------------------------------------------------


def noticed(device: Gpu, op: str, numbers: dict[str, Any], count: int = 60) -> str:
    """What the first of so many calls tells that fails, or nothing."""
    tried = itertools.islice(examples(op, numbers), count)
    return next(filter(None, (failure(device, op, example) for example in tried)), "")


def failure(device: Gpu, op: str, example: Example) -> str:
    """What a call tells where it fails or does not what the reference does."""
    try:
        got = cases.outcome(example, partial(device.call, op))
        cases.assert_same(example, got, cases.expected(op, example))
    except (AssertionError, Fault, ValueError) as found:
        return repr(found)
    return ""


def examples(op: str, numbers: dict[str, Any]) -> Iterator[Example]:
    choices = random.Random(op)
    if op.endswith(".list"):
        yield from cases.examples(op)
        return
    while True:
        for dtypes, _ in cases.combinations(op):
            size, aligned = choices.choice((257, 1023, 1025)), choices.random() < 0.7
            yield cases.one_example(op, choices, dtypes, size, aligned, **numbers)
