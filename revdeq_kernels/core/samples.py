"""Small random arguments for every op: all combinations of dtypes, several values of beta."""

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

NUMEL = 1003  # whole blocks, a partial block, and a tail shorter than a vector
WHOLE = 1040  # a whole number of vectors, with a partial block
LEAVES = (NUMEL, 1, 0, 4096 + 33)
"""The sizes of the leaves in samples for lists."""

LEAVES_LIKE = {1: (1,), WHOLE: (4096 + 32, WHOLE), NUMEL: (4096 + 33, NUMEL)}
"""The same if all leaves must have one kind, by the size that represents the kind."""

LEAVES_AT_ONCE = 16
"""The maximum number of leaves per launch of a Triton kernel."""

SHAPE = (17, 59)
"""The shape of the state if beta is a tensor."""

OUTER, CHANNELS = {1: 1, WHOLE: 32, NUMEL: 21}, {1: 59, WHOLE: 64, NUMEL: 59}
STRIDES = {1: 1, WHOLE: 32, NUMEL: 5}
"""Sizes and strides if both must have one kind: numel = outer * channels * inner."""

VALUES_OF_BETA = (0.5, 0.8, 0.7312, 1.3)  # forms "shift", "integer" and "general"; 1 - beta < 0
OTHER_NUMBERS = {BETA: 0.31, EXACT_BETA: 0.31, FACTOR: 0.2688, FRAC_BITS: 16}

Named = dict[str, Any]
Sample = tuple[list[Any], Named]
"""Positional and keyword arguments; the tensors are on the CPU."""


class Described(Protocol):
    """The part of an ``Op`` from which samples are derived."""

    arguments: Arguments
    dtypes: Sequence[Dtypes]
    overload_name: str
    tensors_of: Callable[[tuple[Any, ...]], tuple[Any, ...]]
    compiled_numbers: Sequence[tuple[int, Callable[[Any], Hashable]]]


class Kind(NamedTuple):
    """The kind of arguments for which Triton compiles one kernel.

    Element counts of 2^31 or more are a further kind, which small samples cannot have.
    """

    dtypes: tuple[torch.dtype, ...]
    """Of the tensors that are given, in order."""
    aligned: tuple[bool, ...]
    """Whether each starts at a multiple of 16 bytes."""
    size: int
    """The key of LEAVES_LIKE that represents the element count of a leaf."""
    numbers: tuple[Any, ...]
    """The values of ``compiled_number`` for the numbers; for a tensor beta, its layout."""
    leaves: int = 1
    """How many leaves are launched together."""


_DTYPE = attrgetter("dtype")


def compiled_number(argument: Argument) -> Callable[[Any], Hashable] | None:
    """The function of this number for which a kernel is specialized; None if it is not."""
    if argument.role == DTYPE:
        return lambda dtype: dtype
    if argument.role == EXACT_BETA and argument.name == "beta":  # the beta of its digits
        return form_of
    return None


# ---- samples for all arguments of an op ------------------------------------------------------


def samples(op: Described) -> Iterator[Sample]:
    """The arguments with which `op` is compared to the reference; the same in every process."""
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


# ---- samples for the kind of a call ----------------------------------------------------------


def kind_of(op: Described, args: tuple[Any, ...], kw: Named) -> Kind:
    """The kind of a call on one leaf, determined in microseconds; arguments are not checked."""
    tensors = op.tensors_of(args)
    if kw:
        tensors = (*tensors, *[value for value in kw.values() if value is not None])
    aligned = tuple([t.data_ptr() % 16 == 0 for t in tensors])
    return Kind(tuple(map(_DTYPE, tensors)), aligned, _size(args[0].numel()), _numbers_of(op, args))


def kinds_of(op: Described, args: tuple[Any, ...], kw: Named) -> set[Kind]:
    """The kinds of a call's launches: leaves of one kind share a launch, empty ones have none."""
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
    """The representative of an integer: Triton distinguishes 1, multiples of 16, and others."""
    return WHOLE if number % 16 == 0 else NUMEL if number != 1 else 1


def _numbers_of(op: Described, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values for which a kernel is specialized; omitted numbers have none."""
    if op.overload_name == "channels":
        return _layout(args[0], args[2])
    return tuple([of(args[place]) for place, of in op.compiled_numbers if place < len(args)])


def _layout(state: Tensor, beta: Tensor) -> tuple[int, ...]:
    """The representatives of inner, channels and stride: see ``triton/launch/half_step.py``."""
    for dimension, channels in enumerate(beta.shape, state.dim() - beta.dim()):
        if channels != 1:
            stride = beta.stride(dimension - state.dim())
            return _size(state.stride(dimension)), _size(channels), _size(stride)
    return 1, 1, _size(0)


def samples_like(op: Described, kind: Kind, args: Sequence[Any]) -> Iterator[Sample]:
    """Arguments that run the kernel of `kind`, which is one of the kinds of a call with `args`."""
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
    """The shapes of a state and its betas, and the stride of the betas, for a layout."""
    inner, channels, stride = kind.numbers
    if channels == 1:
        return (OUTER[kind.size], CHANNELS[kind.size] if kind.size != 1 else 1), (1,), 1
    count = CHANNELS[channels]
    return (OUTER[kind.size], count, STRIDES[inner]), (count, 1), STRIDES[stride]


def _aligned_as(op: Described, named: Named, aligned: Sequence[bool]) -> Named:
    """The arguments of a leaf; tensors that must not be aligned start one element later."""
    names = [a.name for a in op.arguments if a.is_tensor and a.name in named]
    moved = [name for name, is_aligned in zip(names, aligned, strict=True) if not is_aligned]
    return named | {name: copy_laid_out(named[name], 1) for name in moved}


def copy_laid_out(t: Tensor, begin: int, device: torch.device | str = "cpu") -> Tensor:
    """A copy with the strides of `t`, which starts `begin` elements into its memory."""
    reach = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True)) + 1
    memory = t.new_empty(begin + (reach if t.numel() else 0), device=device)
    return memory.as_strided(t.shape, t.stride(), begin).copy_(t)


# ---- shared helpers --------------------------------------------------------------------------


def _arguments(
    op: Described, dtypes: Sequence[torch.dtype | None], numbers: Named, random: _Random
) -> Named:
    """One leaf's arguments by name, without optional tensors for which `dtypes` has no entry."""
    names = [a.name for a in op.arguments if a.is_tensor]
    of = dict(zip(names, dtypes, strict=False))
    return {
        a.name: random.tensor(a.role, of[a.name], numbers) if a.is_tensor else numbers.get(a.name)
        for a in op.arguments
        if not a.is_tensor or a.name in of
    }


def _joined(arguments: Arguments, leaves: Sequence[Named]) -> Named:
    """One call for all leaves, which share numbers and flags."""
    return {
        a.name: leaves[0][a.name] if a.shared else [leaf[a.name] for leaf in leaves]
        for a in arguments
        if a.name in leaves[0]
    }


def _by_place(op: Described, named: Named) -> Sample:
    by_place = [named[a.name] for a in op.arguments if not a.optional]
    return by_place, {a.name: named[a.name] for a in op.arguments if a.optional and a.name in named}


def _numbers(op: Described, shape: Sequence[int], own: Named | None = None) -> Iterator[Named]:
    """Several choices of the numbers, and of the shape of a beta that is a tensor.

    With `own`, the numbers of a call, only choices that run the same kernel.
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
        """A random tensor for the role, in a call with these numbers."""
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
        if dtype == torch.int32:  # an exact state, with some values far from 0
            values = torch.randint(-(2**21), 2**21, self.shape, generator=self.generator)
            return values.to(dtype)
        return torch.randn(self.shape, generator=self.generator).to(dtype)
