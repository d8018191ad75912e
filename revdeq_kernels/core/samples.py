"""Small random arguments of every op: each combination of dtypes, several values of beta."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Protocol

import torch
from torch import Tensor

from ..exact_numbers import digit_bytes
from .checks import F_DTYPES
from .roles import (
    BETA,
    BETAS,
    DIGITS,
    DTYPE,
    EXACT_BETA,
    FACTOR,
    FLAG,
    FRAC_BITS,
    Arguments,
    Dtypes,
)

NUMEL = 1003  # whole blocks, a partial one, and a tail that no vector covers
LEAVES = (NUMEL, 1, 0, 4096 + 33)
"""The sizes of the leaves in samples of lists."""

ROWS, COLUMNS = 17, 59
"""The shape where beta is a tensor."""

VALUES_OF_BETA = (0.5, 0.8, 0.7312, 1.3)  # digits by shift, by integer, in general; 1 - beta < 0
OTHER_NUMBERS = {BETA: 0.31, EXACT_BETA: 0.31, FACTOR: 0.2688, FRAC_BITS: 16}

Named = dict[str, Any]
Sample = tuple[list[Any], Named]
"""Arguments by position, and by keyword; the tensors are on the CPU."""


class Described(Protocol):
    """What samples follow from: an ``Op``."""

    arguments: Arguments
    dtypes: Sequence[Dtypes]
    overload_name: str


def samples(op: Described) -> Iterator[Sample]:
    """The arguments with which `op` is compared with the reference, the same in every process."""
    if op.overload_name == "list":
        leaves = zip(*(_samples(op, _Random((numel,))) for numel in LEAVES), strict=True)
        found = (_joined(op.arguments, together) for together in leaves)
    else:
        found = _samples(op, _Random((ROWS, COLUMNS) if op.overload_name else (NUMEL,)))
    for named in found:
        by_place = [named[a.name] for a in op.arguments if not a.optional]
        yield by_place, {a.name: named[a.name] for a in op.arguments if a.optional}


def _joined(arguments: Arguments, leaves: Sequence[Named]) -> Named:
    """One call for the leaves; numbers and flags are one for all."""
    return {
        a.name: leaves[0][a.name] if a.shared else [leaf[a.name] for leaf in leaves]
        for a in arguments
    }


def _samples(op: Described, random: _Random) -> Iterator[Named]:
    names = [a.name for a in op.arguments if a.is_tensor]
    cases = [case for case in op.dtypes if None not in case]
    for case, numbers in product(cases, list(_numbers(op.arguments))):
        dtypes = dict(zip(names, case, strict=True))
        yield {
            a.name: random.tensor(a.role, dtypes[a.name], numbers) if a.is_tensor else value
            for a in op.arguments
            for value in [numbers.get(a.name)]
        }


def _numbers(arguments: Arguments) -> Iterator[Named]:
    """What is no tensor, in several ways; and the shape of a beta that is a tensor."""
    roles = {a.role for a in arguments}
    fixed = {a.name: OTHER_NUMBERS.get(a.role) for a in arguments if not a.is_tensor}
    if BETAS in roles:
        yield from ({"shape": shape} for shape in ((1,), (ROWS, 1), (COLUMNS,)))
    elif DTYPE in roles:
        yield from (fixed | {"dtype": dtype} for dtype in F_DTYPES)
    elif roles & {BETA, EXACT_BETA}:
        tie = {"tie": 0} if "tie" in fixed else {}
        for n, beta in enumerate(VALUES_OF_BETA):
            yield fixed | {"beta": beta} | dict.fromkeys(tie, n % 2)
    else:
        yield fixed


class _Random:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = torch.Size(shape)
        self.generator = torch.Generator().manual_seed(self.shape.numel())

    def tensor(self, role: str, dtype: torch.dtype | None, numbers: Named) -> Tensor:
        """A tensor of that role beside those numbers."""
        if role == FLAG:
            return torch.zeros(1, dtype=torch.int32)
        if role == BETAS:
            betas = torch.rand(numbers["shape"], generator=self.generator, dtype=torch.float64)
            return (betas * 0.9).to(dtype)
        if role == DIGITS:
            size = (digit_bytes(self.shape.numel(), numbers["beta"]),)
            return torch.randint(0, 256, size, generator=self.generator).to(dtype)
        if dtype == torch.int32:  # an exact state, some of it far from 0
            values = torch.randint(-(2**21), 2**21, self.shape, generator=self.generator)
            return values.to(dtype)
        return torch.randn(self.shape, generator=self.generator).to(dtype)
