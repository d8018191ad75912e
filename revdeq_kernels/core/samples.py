"""Small random arguments of every op: each combination of dtypes, several values of beta."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import cycle, islice, product
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

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

LEAVES_LIKE = {1: (1,), WHOLE: (4096 + 32, WHOLE), NUMEL: (4096 + 33, NUMEL)}
"""The same where every leaf is to be of one kind, by the size that stands for the kind."""

LEAVES_AT_ONCE = 16
"""The most leaves that a launch of a Triton kernel serves."""

SHAPE = (17, 59)
"""The shape where beta is a tensor."""

OUTER, CHANNELS = {1: 1, WHOLE: 32, NUMEL: 21}, {1: 59, WHOLE: 64, NUMEL: 59}
STRIDES = {1: 1, WHOLE: 32, NUMEL: 5}
"""Sizes and strides where both are to be of one kind: numel = outer * channels * inner."""

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


class Kind(NamedTuple):
    """What Triton compiles one kernel for.

    An element count of 2^31 or more is yet another, which no small sample has.
    """

    dtypes: tuple[torch.dtype, ...]
    """Of the tensors that were given, in their order."""
    aligned: tuple[bool, ...]
    """Whether each begins at a multiple of 16 bytes."""
    size: int
    """The key of LEAVES_LIKE that stands for the element count of a leaf."""
    numbers: tuple[Any, ...]
    """What ``compiled_number`` makes of the numbers; of a beta that is a tensor, its layout."""
    leaves: int = 1
    """How many are launched together."""


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
        found = _samples(op, _Random(SHAPE if op.overload_name else (NUMEL,)))
    return (_by_place(op, named) for named in found)


def _samples(op: Described, random: _Random) -> Iterator[Named]:
    cases = [case for case in op.dtypes if None not in case]
    for case, numbers in product(cases, list(_numbers(op, random.shape))):
        yield _arguments(op, case, numbers, random)


# ---- samples like a call ---------------------------------------------------------------------


def kind_of(op: Described, args: tuple[Any, ...], kw: Named) -> Kind:
    """The kind of a call on one leaf, read in microseconds; arguments are not checked."""
    tensors = op.tensors_of(args)
    if kw:
        tensors = (*tensors, *[value for value in kw.values() if value is not None])
    aligned = tuple([t.data_ptr() % 16 == 0 for t in tensors])
    return Kind(tuple(map(_DTYPE, tensors)), aligned, _size(args[0].numel()), _numbers_of(op, args))


def kinds_of(op: Described, args: tuple[Any, ...], kw: Named) -> set[Kind]:
    """The kinds of the launches of a call: leaves of one kind go together, empty ones nowhere."""
    if op.overload_name != "list":
        return {kind_of(op, args, kw)}
    leads, numbers = args[0], _numbers_of(op, args)
    columns = [
        given if type(given) is list else (given,) * len(leads)
        for given in (*op.tensors_of(args), *kw.values())
        if given is not None
    ]
    alike = Counter(
        (
            tuple(map(_DTYPE, leaf)),
            tuple([t.data_ptr() % 16 == 0 for t in leaf]),
            _size(leaf[0].numel()),
        )
        for leaf in zip(*columns, strict=True)
        if leaf[0].numel() > 0
    )
    kinds = set()
    for alone, count in alike.items():
        whole, rest = divmod(count, LEAVES_AT_ONCE)
        kinds |= {Kind(*alone, numbers, LEAVES_AT_ONCE)} if whole else set()
        kinds |= {Kind(*alone, numbers, rest)} if rest else set()
    return kinds


def _size(number: int) -> int:
    """Triton tells apart an integer that is 1, one that is a multiple of 16, and others."""
    return WHOLE if number % 16 == 0 else NUMEL if number != 1 else 1


def _numbers_of(op: Described, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What is compiled of the numbers; nothing of one that was left out."""
    if op.overload_name == "channels":
        return _layout(args[0], args[2])
    return tuple([of(args[place]) for place, of in op.compiled_numbers if place < len(args)])


def _layout(state: Tensor, beta: Tensor) -> tuple[int, ...]:
    """The sizes of inner, channels and stride, as ``triton/launch/half_step.py`` has them."""
    for dimension, channels in enumerate(beta.shape, state.dim() - beta.dim()):
        if channels != 1:
            stride = beta.stride(dimension - state.dim())
            return _size(state.stride(dimension)), _size(channels), _size(stride)
    return 1, 1, _size(0)


def samples_like(op: Described, kind: Kind, args: Sequence[Any]) -> Iterator[Sample]:
    """Arguments for which the kernel is that of `kind`, which is one of a call with `args`."""
    by_place = [a for a in op.arguments if not a.optional]
    own = {by_place[k].name: args[k] for k, _ in op.compiled_numbers if k < len(args)}
    shapes = [(kind.size,)]
    if op.overload_name == "list":
        sizes = islice(cycle(LEAVES_LIKE[kind.size]), kind.leaves)
        shapes = [(size,) for size in (*sizes, 0)]
    elif op.overload_name == "channels":
        shape, beta, stride = _laid_out(kind)
        shapes, own = [shape], {"shape": beta, "stride": stride}
    randoms = [_Random(shape, seed) for seed, shape in enumerate(shapes)]
    for numbers in _numbers(op, shapes[0], own):
        leaves = [_arguments(op, kind.dtypes, numbers, random) for random in randoms]
        leaves = [_aligned_as(op, leaf, kind.aligned) for leaf in leaves]
        joined = _joined(op.arguments, leaves) if op.overload_name == "list" else leaves[0]
        yield _by_place(op, joined)


def _laid_out(kind: Kind) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shapes of a state and its betas, and the stride of these, for a layout."""
    inner, channels, stride = kind.numbers
    if channels == 1:
        return (OUTER[kind.size], CHANNELS[kind.size] if kind.size != 1 else 1), (1,), 1
    count = CHANNELS[channels]
    return (OUTER[kind.size], count, STRIDES[inner]), (count, 1), STRIDES[stride]


def _aligned_as(op: Described, named: Named, aligned: Sequence[bool]) -> Named:
    """The arguments of a leaf; a tensor that is not to be aligned begins an element further on."""
    names = [a.name for a in op.arguments if a.is_tensor and a.name in named]
    moved = [name for name, is_aligned in zip(names, aligned, strict=True) if not is_aligned]
    return named | {name: copy_laid_out(named[name], 1) for name in moved}


def copy_laid_out(t: Tensor, begin: int, device: torch.device | str = "cpu") -> Tensor:
    """A copy with the strides of `t`, which begins so many elements into its memory."""
    reach = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True)) + 1
    memory = t.new_empty(begin + (reach if t.numel() else 0), device=device)
    return memory.as_strided(t.shape, t.stride(), begin).copy_(t)


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
        every = [{"shape": each, "stride": 1} for each in ((1,), (shape[0], 1), (shape[1],))]
        yield from [own] if own else every
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
    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        self.shape = torch.Size(shape)
        self.generator = torch.Generator().manual_seed(self.shape.numel() + seed)

    def tensor(self, role: str, dtype: torch.dtype | None, numbers: Named) -> Tensor:
        """A tensor of that role beside those numbers."""
        if role == FLAG:
            return torch.zeros(1, dtype=torch.int32)
        if role == BETAS:
            shape, stride = torch.Size(numbers["shape"]), numbers["stride"]
            betas = torch.rand(
                shape.numel() * stride, generator=self.generator, dtype=torch.float64
            )
            return (betas * 0.9).to(dtype)[::stride].view(shape)
        if role == DIGITS:
            size = (digit_bytes(self.shape.numel(), numbers["beta"]),)
            return torch.randint(0, 256, size, generator=self.generator).to(dtype)
        if dtype == torch.int32:  # an exact state, some of it far from 0
            values = torch.randint(-(2**21), 2**21, self.shape, generator=self.generator)
            return values.to(dtype)
        return torch.randn(self.shape, generator=self.generator).to(dtype)
