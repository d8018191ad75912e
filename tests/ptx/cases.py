"""Difficult arguments for every op, for compiled code.

Every combination of dtypes, sizes at the ends of vectors, blocks and chunks, tensors anywhere in
their storage with dimensions in any order, every form of beta, values that include NaN, infinities,
subnormals and the limits of int32, and lists with more leaves than a single launch supports. These
are examples of tests/ops/fuzz_example.py, chosen by a seed, without invalid arguments.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

import revdeq_kernels as rk
from revdeq_kernels.core import roles
from revdeq_kernels.core.checks import F_DTYPES
from revdeq_kernels.core.op import OPS
from revdeq_kernels.core.roles import Dtypes
from tests.conftest import BETAS
from tests.ops.arguments import call
from tests.ops.fuzz_example import Example, View
from tests.ops.fuzzing import in_order, plain
from tests.ops.test_fuzz import assert_same_tensor, bytes_of, several

EDGES = (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64)
SIZES = (*EDGES, 127, 128, 129, 255, 256, 257, 1023, 1025, 4095, 4096, 4097)
"""Numbers of elements: 27 sizes, so that a list of all takes two launches."""

SHAPES = ((3, 4, 5, 6), (2, 17, 31), (5, 1, 13), (129, 3), (2, 0), ())
OFFSETS = (0, 0, 1, 2, 3, 4, 5, 6, 7, 8)
"""Offsets of tensors in their storages, in elements or, for vectors, in units of 16 bytes."""

CHANNELS = (
    *(((7, 33), (7, 1)), ((7, 33), (33,)), ((5, 1, 13), (5, 1, 1)), ((3, 4, 5, 6), (4, 1, 1))),
    *(((), ()), ((1, 1), (1,)), ((2, 0), (1,)), ((129, 3), (3,)), ((2, 17, 31), (17, 1))),
)
"""Shapes of the state and of beta."""

# Bases from 2 to 256: every form of the exact step with every number of digits per byte.
MAGNITUDES = (1 / 2, 1 / 4, 1 / 16, 1 / 128, 1 / 3, 1 / 5, 1 / 13, 1 / 100)
MAGNITUDES += (0.65, 0.4, 0.3, 0.19, 0.12, 0.05, 1 / 255.5, 1 - 2.0**-29)
EXACT_BETAS = (*BETAS, *(1 - sign * m for m in MAGNITUDES for sign in (1, -1)))
FLOAT_BETAS = (*BETAS, 1e-3, 1e-7, 0.99, 1.01, 1.999)

NUMBERS: dict[str, Sequence[Any]] = {
    roles.BETA: FLOAT_BETAS,
    roles.EXACT_BETA: EXACT_BETAS,
    roles.FACTOR: (0.2, -0.7312, 1.0, 1e-3, 0.5),
    roles.FRAC_BITS: (0, 8, 16, 16, 20, 30),
    roles.TIE: (0, 1),
    roles.DTYPE: tuple(F_DTYPES),
}


def examples(label: str, seed: int = 0) -> Iterator[Example]:
    """One example per combination of dtypes of an op; for lists, three with all SIZES."""
    choices = random.Random(f"{label} {seed}")
    if label.endswith(".list"):
        for _ in range(3):
            yield _list_example(label, choices)
        return
    for dtypes, numbers in combinations(label):
        yield one_example(label, choices, dtypes, choices.choice(SIZES), **numbers)


def combinations(label: str) -> list[tuple[Dtypes, dict[str, Any]]]:
    """All combinations of dtypes, including optional tensors."""
    told = [a for a in OPS[label].arguments if a.role == roles.DTYPE]
    numbers = [{a.name: dtype} for a in told for dtype in NUMBERS[roles.DTYPE]] or [{}]
    return list(itertools.product(OPS[label].dtypes, numbers))


def one_example(
    label: str,
    choices: random.Random,
    dtypes: Dtypes,
    size: int,
    aligned: bool | None = None,
    **numbers: Any,
) -> Example:
    """An example with tensors of these dtypes and with these numbers; the rest is random."""
    example = Example(OPS[label].name, _numbers(label, choices) | numbers, [], 64)
    example.values |= _leaf(label, choices, example, dtypes, size, aligned)
    return example


def _list_example(label: str, choices: random.Random) -> Example:
    op = OPS[label]
    example = Example(op.name, _numbers(label, choices), [], 64)
    first = choices.choice(op.dtypes)
    alike = [d for d in op.dtypes if [x is None for x in d] == [x is None for x in first]]
    leaves = [
        _leaf(label, choices, example, choices.choice(alike), size)
        for size in choices.sample(SIZES, len(SIZES))
    ]
    shared = {a.name for a in op.arguments if a.shared}
    for name, view in leaves[0].items():
        example.values[name] = view if name in shared else [leaf[name] for leaf in leaves]
    return example


def _numbers(label: str, choices: random.Random) -> dict[str, Any]:
    numbers = [a for a in OPS[label].arguments if not a.is_tensor]
    return {a.name: choices.choice(NUMBERS[a.role]) for a in numbers}


def _leaf(
    label: str,
    choices: random.Random,
    example: Example,
    dtypes: Dtypes,
    size: int,
    aligned: bool | None = None,
) -> dict[str, View]:
    """The tensors of one leaf, in separate buffers; alignment for vectors is random if None."""
    arguments = [a for a in OPS[label].arguments if a.is_tensor]
    if aligned is None:
        aligned = choices.random() < 0.5
    shape, betas = _shapes(label, choices, size)
    dense = in_order(shape, choices.sample(range(len(shape)), len(shape)))
    fill = choices.choice(("ordinary", "mixed", "mixed", "bits"))
    views = {}
    for argument, dtype in zip(arguments, dtypes, strict=True):
        if dtype is None:
            continue
        own, strides = shape, dense
        if argument.role == roles.FREE:
            gaps = in_order(shape, range(len(shape)), 3)
            strides = choices.choice((dense, dense, plain(shape), gaps))
        elif argument.role == roles.DIGITS:
            own = (rk.digit_bytes(math.prod(shape), example.values["beta"]),)
            strides = (1,)
        elif argument.role == roles.FLAG:
            own, strides = (1,), (1,)
        elif argument.role == roles.BETAS:
            own, strides = betas, in_order(betas, range(len(betas))[::-1], choices.choice((1, 2)))
        offset = choices.choice(OFFSETS)
        start = 16 * offset if aligned else dtype.itemsize * offset
        views[argument.name] = View(dtype, own, strides, len(example.fills), start)
        kind = "beta" if argument.role == roles.BETAS else fill
        example.fills.append((kind, dtype, choices.randrange(2**31)))
    return views


def _shapes(
    label: str, choices: random.Random, size: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of the state, and of beta if it is a tensor."""
    if label.endswith(".channels"):
        return choices.choice(CHANNELS)
    return (choices.choice(SHAPES) if choices.random() < 0.2 else (size,)), ()


# ---- what a call does ------------------------------------------------------------------------

Outcome = tuple[list[Tensor], Any]
"""The buffers after the call, and its result."""


def outcome(example: Example, run: Callable[[dict[str, Any]], Any]) -> Outcome:
    """Call `run(arguments)` with the example's arguments, in separate memory."""
    memory = [buffer.clone() for buffer in example.memory()]
    return memory, run(example.build(memory))


def expected(label: str, example: Example) -> Outcome:
    """The outcome of the reference."""
    with rk.backend("reference"):
        return outcome(example, lambda arguments: call(label, arguments))


def assert_same(example: Example, got: Outcome, want: Outcome) -> None:
    """Assert equal bits in tensors and results (all NaN are equal), and no other writes."""
    told = f"{example.op} {example.values}"
    beside = [g != w for g, w in zip(got[0], want[0], strict=True)]
    for name, view in example.views().items():
        assert_same_tensor(view.on(got[0]), view.on(want[0]), f"{told}: {name}")
        bytes_of(beside[view.buffer], view).fill_(False)
    assert not any(b.any() for b in beside), f"{told}: bytes beside a tensor were written"
    if not example.op.endswith("_"):
        for mine, other in zip(several(got[1]), several(want[1]), strict=True):
            if other is not None:
                assert_same_tensor(mine, other, f"{told}: result")
