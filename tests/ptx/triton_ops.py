"""Every op compiled by Triton, compared to the reference: the calls, and how to run one.

Compilation runs in a separate process (``compiling.py``), from test_triton_ops.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from revdeq_kernels.core import roles
from revdeq_kernels.core.op import OPS
from revdeq_kernels.core.samples import samples
from tests.ops.arguments import (
    NAMESPACES,
    arguments_of_leaf,
    assert_same_outcome,
    call,
    expected,
    lists_of,
    outcome,
)
from tests.ops.device_checks import (
    FORM_BETAS,
    any_bits,
    assert_nothing_around_was_written,
    placed,
)
from tests.ops.fuzz_example import Example
from tests.ptx import cases
from tools.ptx.triton import executed

SEEDS = 3
"""How often every combination of dtypes is run, with different arguments."""

EQUAL = (33,) * 17 + (16,) * 2 + (1,) * 3
"""Sizes of leaves: one for each kernel that Triton compiles, and more than fit into a launch."""


class Case(NamedTuple):
    """Arguments of an op, to be placed at an offset into separate allocations."""

    arguments: dict[str, Any]
    offset: int = 0


def check(op: str, case: Case) -> None:
    """Raise AssertionError unless kernels return the reference's bits and write nothing else."""
    want = expected(op, case.arguments)
    mine = placed(case.arguments, "cpu", case.offset)
    result = call(op, mine, NAMESPACES["triton"])
    numbers = {n: a for n, a in case.arguments.items() if isinstance(a, (int, float))}
    assert_same_outcome(outcome(mine, result), want, (op, numbers, case.offset))
    assert_nothing_around_was_written(mine)


def check_example(op: str, example: Example) -> None:
    """The same for one of ``cases.py``."""
    got = cases.outcome(example, lambda arguments: call(op, arguments, NAMESPACES["triton"]))
    cases.assert_same(example, got, cases.expected(op, example))


def check_first(op: str, sm: int) -> int:
    """Run calls that need one kernel, up to the first that launches it."""
    with executed(sm) as gpu:
        for attempt in [*equal_leaves(op, EQUAL[:3]), *examples(op)]:
            attempt()
            if gpu.launches:
                return len(gpu.launches)
    return 0


def check_all(op: str, sm: int, every: int = 1) -> int:
    """Run all calls, or every n-th; returns the number of launches."""
    with executed(sm) as gpu:
        for attempt in itertools.islice(attempts(op), 0, None, every):
            attempt()
        return len(gpu.launches)


# ---- the calls -------------------------------------------------------------------------------

Attempt = Callable[[], None]


def attempts(op: str) -> Iterator[Attempt]:
    """All calls of an op."""
    yield from first_uses(op)
    yield from examples(op)
    yield from forms(op)
    yield from flags(op)
    yield from equal_leaves(op)


def first_uses(op: str) -> Iterator[Attempt]:
    """With the arguments of the first-use check: every combination of dtypes, and numbers."""
    names = [a.name for a in OPS[op].arguments if not a.optional]
    for by_place, keywords in samples(OPS[op]):
        yield partial(check, op, Case(dict(zip(names, by_place, strict=True)) | keywords))


def examples(op: str) -> Iterator[Attempt]:
    """With difficult arguments."""
    for seed in range(SEEDS):
        for example in cases.examples(op, seed):
            yield partial(check_example, op, example)


def forms(op: str) -> Iterator[Attempt]:
    """Every form of the exact step with every number of digits in a byte, both ties, any bits."""
    if any(a.role == roles.DIGITS for a in OPS[op].arguments) and not op.endswith(".list"):
        for k, (beta, tie) in enumerate(itertools.product(FORM_BETAS, (0, 1))):
            numbers = {"beta": beta, "tie": tie, "frac_bits": (16, 0, 30)[k % 3]}
            arguments = any_bits(arguments_of_leaf(op, (1025,), **numbers), k)
            yield partial(check, op, Case(arguments, 3 * tie))


def flags(op: str) -> Iterator[Attempt]:
    """One element is out of range, in the first program or in the last: the flag must be set."""
    if any(a.role == roles.FLAG for a in OPS[op].arguments) and not op.endswith(".list"):
        for place, bad in ((0, math.nan), (2047, math.inf), (2048, 16385.0)):
            arguments = arguments_of_leaf(op, (2049,), f=torch.float32, cast=torch.float32)
            arguments["f" if "f" in arguments else "x"][place] = bad
            yield partial(check, op, Case(arguments))


def equal_leaves(op: str, sizes: Sequence[int] = EQUAL) -> Iterator[Attempt]:
    """A call of a list op with leaves of these sizes."""
    if op.endswith(".list"):
        leaves = [arguments_of_leaf(op, (n,), seed=7 * k) for k, n in enumerate(sizes)]
        yield partial(check, op, Case(any_bits(lists_of(op, leaves)), 1))
