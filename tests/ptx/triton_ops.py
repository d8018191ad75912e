"""Every op as Triton compiles it, against the reference: the cases, and how one is tried.

What compiles runs in a process of its own (``compiling.py``): test_triton_ops.py calls it there.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from revdeq_kernels.core import roles
from revdeq_kernels.core.op import OPS as KNOWN
from revdeq_kernels.core.samples import samples
from tests.ops.arguments import CHANNEL_PLACES as PLACES
from tests.ops.arguments import (
    NAMESPACES,
    arguments_of_leaf,
    assert_same_outcome,
    call,
    channel_arguments,
    expected,
    lists_of,
    outcome,
    with_tensors,
)
from tests.ops.device_checks import (
    FORM_BETAS,
    any_bits,
    assert_nothing_around_was_written,
    placed,
)
from tools.ptx.triton import executed

SIZES = (257, 16, 1023, 1, 0, 33, 4097, 31, 1024, 2, 4096)
"""Of leaves: what a block and a vector divide, what they do not, one element and none."""

OFFSETS = (0, 3, 1, 8, 2)
"""Elements between an allocation and a tensor in it."""

LISTS = ((33,) * 17 + (16,) * 2 + (1,) * 3, (31,) * 33 + (0,), SIZES)
"""Sizes of many leaves: more than a launch has, of one size and of all."""


class Case(NamedTuple):
    """A call of an op, with its tensors so many elements into their allocations."""

    arguments: dict[str, Any]
    offset: int = 0


def check(op: str, case: Case) -> None:
    """Raise AssertionError unless the kernels give the reference's bits and write nothing else."""
    want = expected(op, case.arguments)
    mine = placed(case.arguments, "cpu", case.offset)
    result = call(op, mine, NAMESPACES["triton"])
    numbers = {n: a for n, a in case.arguments.items() if isinstance(a, (int, float))}
    assert_same_outcome(outcome(mine, result), want, (op, numbers, case.offset))
    assert_nothing_around_was_written(mine)


def check_cases(op: str, sm: int, every: int = 1) -> int:
    """Try the cases of an op, or each of so many; returns how many launches there were."""
    with executed(sm) as gpu:
        for case in itertools.islice(cases(op), 0, None, every):
            check(op, case)
        return len(gpu.launches)


def check_one(op: str, sm: int) -> int:
    """Try one case that has a tail, any bits, and memory before its tensors."""
    with executed(sm) as gpu:
        check(op, next(hard_cases(op)))
        return len(gpu.launches)


# ---- the cases -------------------------------------------------------------------------------


def cases(op: str) -> Iterator[Case]:
    """All of them: those of the first use, then what is harder."""
    names = [a.name for a in KNOWN[op].arguments if not a.optional]
    for by_place, keywords in samples(KNOWN[op]):
        yield Case(dict(zip(names, by_place, strict=True)) | keywords)
    yield from hard_cases(op)


def hard_cases(op: str) -> Iterator[Case]:
    """Any bits, sizes, offsets, betas and numbers of an exact step, with each of the dtypes."""
    if op.endswith(".channels"):
        yield from _channels(op)
    elif op.endswith(".list"):
        yield from _lists(op)
    else:
        yield from _leaves(op)
        yield from _layouts(op)
        yield from _flags(op)


def options(op: str) -> list[dict[str, Any]]:
    """For ``arguments_of_leaf``: all dtypes of an op, each with other numbers beside."""
    exact = any(a.role in (roles.DIGITS, roles.FRAC_BITS) for a in KNOWN[op].arguments)
    types = list(_types(op))
    count = max(len(types), len(FORM_BETAS) if exact else len(SIZES))
    return [
        types[k % len(types)]
        | {"beta": FORM_BETAS[k % len(FORM_BETAS)], "frac_bits": (16, 0, 30)[k % 3], "tie": k % 2}
        for k in range(count)
    ]


def _types(op: str) -> Iterator[dict[str, Any]]:
    described = KNOWN[op.partition(".")[0]]
    names = [a.name for a in described.arguments if a.is_tensor]
    for dtypes in described.dtypes:
        known = dict(zip(names, dtypes, strict=True))
        if described.name == "dequantize":
            yield from ({"f": f} for f in roles.F_DTYPES)
            continue
        of_option = {"state": ("state", "y", "z"), "f": ("f", "x", "seed")}
        of_option |= {"vjp": ("vjp",), "cast": ("cast",)}
        found = {o: known[n] for o, names in of_option.items() for n in names if n in known}
        yield found | {"optional": None not in dtypes}


def _leaves(op: str) -> Iterator[Case]:
    for k, option in enumerate(options(op)):
        arguments = arguments_of_leaf(op, (SIZES[k % len(SIZES)],), seed=k, **option)
        bits = any_bits(arguments, k) if k % 4 < 3 else arguments
        yield Case(bits, OFFSETS[(k + 1) % len(OFFSETS)])


def _layouts(op: str) -> Iterator[Case]:
    """channels_last throughout, and an f of another layout, which costs a copy."""
    plain = arguments_of_leaf(op, (2, 3, 5, 7), beta=0.8)
    last = with_tensors(
        plain, lambda _, t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
    )
    yield Case(last)
    if "f" in plain:
        yield Case(last | {"f": plain["f"]})


def _flags(op: str) -> Iterator[Case]:
    """One element out of range, in the first and the last program: the flag is raised."""
    if any(a.role == roles.FLAG for a in KNOWN[op].arguments):
        for place, bad in ((0, math.nan), (2047, math.inf), (2048, 16385.0)):
            arguments = arguments_of_leaf(op, (2049,), f=torch.float32, cast=torch.float32)
            arguments["f" if "f" in arguments else "x"][place] = bad
            yield Case(arguments)


def _channels(op: str) -> Iterator[Case]:
    types = list(_types(op))
    for k, (shape, beta) in enumerate(PLACES):
        arguments = channel_arguments(op, shape, beta, **types[k % len(types)])
        yield Case(any_bits(arguments, k) if k % 2 else arguments, OFFSETS[k % len(OFFSETS)])
        if len(shape) == 4:
            yield Case(
                with_tensors(
                    arguments,
                    lambda _, t: (
                        t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
                    ),
                )
            )


def _lists(op: str) -> Iterator[Case]:
    """The leaves of a list share numbers, and whether they have a cast; dtypes may differ."""
    every, shuffled = options(op), random.Random(op)
    for k, option in enumerate(every):
        sizes = LISTS[k] if k < len(LISTS) else (*shuffled.sample(SIZES, 4), 33, 33)
        alike = [o for o in every if (o.get("cast") is None) == (option.get("cast") is None)]
        numbers = {n: option[n] for n in ("beta", "frac_bits", "tie", "optional") if n in option}
        leaves = []
        for j, size in enumerate(sizes):
            types = option if k < len(LISTS) - 1 else alike[(j + k) % len(alike)]
            if op == "dequantize.list":  # the dtype is one for all
                types = option
            leaves.append(arguments_of_leaf(op, (size,), seed=7 * j + k, **types | numbers))
        arguments = lists_of(op, leaves)
        yield Case(any_bits(arguments, k) if k % 4 < 3 else arguments, OFFSETS[k % len(OFFSETS)])
