"""Small random arguments of every op: each combination of dtypes, several values of beta."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import product
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import Tensor

from ..exact_numbers import digit_bytes, form_of
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
    Argument,
    Arguments,
    Dtypes,
)

NUMEL = 1003  # whole blocks, a partial one, and a tail that no vector covers
WHOLE = 1040  # vectors all along, blocks and a partial one
LEAVES = (NUMEL, 1, 0, 4096 + 33)
"""The sizes of the leaves in samples of lists."""

LEAVES_LIKE = {1: (1, 1, 0), WHOLE: (WHOLE, 4096 + 32, 0), NUMEL: (NUMEL, 4096 + 33, 0)}
"""The same where every leaf is to be of one kind, by the size that stands for the kind."""

SHAPES = {1: (1, 1), WHOLE: (16, 65), NUMEL: (17, 59)}
"""The shapes where beta is a tensor."""

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
    tensors_of: Callable[[tuple[Any, ...]], tuple[Any, ...]]
    compiled_numbers: Sequence[tuple[int, Callable[[Any], Hashable]]]


Kind = tuple[tuple[torch.dtype, ...], int, tuple[Hashable, ...]]
"""What Triton compiles one kernel for, of a leaf: dtypes of the tensors that were given, in their
order; the key of LEAVES_LIKE that stands for the leaf's size; what ``compiled_number`` makes of the
numbers. A pointer that is not aligned is yet another, which is not told apart here."""

_DTYPE = attrgetter("dtype")


def compiled_number(argument: Argument) -> Callable[[Any], Hashable] | None:
    """What a kernel is compiled for of this number, as a function of it; None for nothing."""
    if argument.role == DTYPE:
        return lambda dtype: dtype
    if argument.role == EXACT_BETA and argument.name == "beta":  # that of its digits
        return form_of
    return None


# ---- samples of all that an op takes ---------------------------------------------------------


def samples(op: Described) -> Iterator[Sample]:
    """The arguments with which `op` is compared with the reference, the same in every process."""
    if op.overload_name == "list":
        leaves = zip(*(_samples(op, _Random((numel,))) for numel in LEAVES), strict=True)
        found = (_joined(op.arguments, together) for together in leaves)
    else:
        found = _samples(op, _Random(SHAPES[NUMEL] if op.overload_name else (NUMEL,)))
    return (_by_place(op, named) for named in found)


def _samples(op: Described, random: _Random) -> Iterator[Named]:
    cases = [case for case in op.dtypes if None not in case]
    for case, numbers in product(cases, list(_numbers(op, random.shape))):
        yield _arguments(op, case, numbers, random)


# ---- samples like a call ---------------------------------------------------------------------


def kind_of(op: Described, args: tuple[Any, ...], kw: Named) -> Kind:
    """The kind of a call on one leaf, read in a microsecond; arguments are not checked."""
    dtypes = tuple(map(_DTYPE, op.tensors_of(args)))
    if kw:
        dtypes += tuple([value.dtype for value in kw.values() if value is not None])
    return dtypes, _size(args[0]), _numbers_of(op, args) if op.compiled_numbers else ()


def kinds_of(op: Described, args: tuple[Any, ...], kw: Named) -> set[Kind]:
    """The kinds of the leaves of a call."""
    if op.overload_name != "list":
        return {kind_of(op, args, kw)}
    leads, numbers = args[0], _numbers_of(op, args)
    columns = [
        map(_DTYPE, given) if type(given) is list else (given.dtype,) * len(leads)
        for given in (*op.tensors_of(args), *kw.values())
        if given is not None
    ]
    rows = zip(*columns, map(_size, leads), strict=True)
    return {(tuple(dtypes), size, numbers) for *dtypes, size in rows}


def _size(lead: Tensor) -> int:
    numel = lead.numel()
    return WHOLE if numel % 16 == 0 else NUMEL if numel != 1 else 1


def _numbers_of(op: Described, args: tuple[Any, ...]) -> tuple[Hashable, ...]:
    """What is compiled of the numbers; nothing of one that was left out."""
    return tuple([of(args[place]) for place, of in op.compiled_numbers if place < len(args)])


def samples_like(op: Described, kind: Kind, args: Sequence[Any]) -> Iterator[Sample]:
    """Arguments for which the kernels are those of `kind`, which is one of a call with `args`."""
    by_place = [a for a in op.arguments if not a.optional]
    own = {by_place[k].name: args[k] for k, _ in op.compiled_numbers if k < len(args)}
    dtypes, numel, _ = kind
    sizes = LEAVES_LIKE[numel] if op.overload_name == "list" else (numel,)
    shapes = [SHAPES[n] if op.overload_name == "channels" else (n,) for n in sizes]
    randoms = [_Random(shape) for shape in shapes]
    for numbers in _numbers(op, shapes[0], own):
        leaves = [_arguments(op, dtypes, numbers, random) for random in randoms]
        joined = _joined(op.arguments, leaves) if op.overload_name == "list" else leaves[0]
        yield _by_place(op, joined)


# ---- what they have in common ----------------------------------------------------------------


def _arguments(
    op: Described, dtypes: Sequence[torch.dtype | None], numbers: Named, random: _Random
) -> Named:
    """One leaf's arguments by name, without an optional tensor that dtypes has none for."""
    names = [a.name for a in op.arguments if a.is_tensor]
    of = dict(zip(names, dtypes, strict=False))
    return {
        a.name: random.tensor(a.role, of[a.name], numbers) if a.is_tensor else numbers.get(a.name)
        for a in op.arguments
        if not a.is_tensor or a.name in of
    }


def _joined(arguments: Arguments, leaves: Sequence[Named]) -> Named:
    """One call for the leaves; numbers and flags are one for all."""
    return {
        a.name: leaves[0][a.name] if a.shared else [leaf[a.name] for leaf in leaves]
        for a in arguments
        if a.name in leaves[0]
    }


def _by_place(op: Described, named: Named) -> Sample:
    by_place = [named[a.name] for a in op.arguments if not a.optional]
    return by_place, {a.name: named[a.name] for a in op.arguments if a.optional and a.name in named}


def _numbers(op: Described, shape: Sequence[int], own: Named | None = None) -> Iterator[Named]:
    """What is no tensor, in several ways; and the shape of a beta that is a tensor.

    With the numbers of a call's `own`, those for which the same is compiled.
    """
    own = own or {}
    roles = {a.role for a in op.arguments}
    fixed = {a.name: OTHER_NUMBERS.get(a.role) for a in op.arguments if not a.is_tensor}
    if BETAS in roles:
        yield from ({"shape": each} for each in ((1,), (shape[0], 1), (shape[1],)))
    elif DTYPE in roles:
        dtypes = [own["dtype"]] if "dtype" in own else F_DTYPES
        yield from (fixed | {"dtype": dtype} for dtype in dtypes)
    elif roles & {BETA, EXACT_BETA}:
        tie = {"tie": 0} if "tie" in fixed else {}
        betas = VALUES_OF_BETA
        if "beta" in own:
            form = form_of(own["beta"])
            betas = [b for b in VALUES_OF_BETA if form_of(b) == form] or [own["beta"]]
        for n, beta in enumerate(betas):
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
