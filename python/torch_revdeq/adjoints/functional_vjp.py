"""f of ``adjoint="functional"``, evaluated and differentiated.

Outside transforms and compilers autograd differentiates f, as in a plain loop, so hooks, custom
autograd functions and gradients inside f work. Inside them ``torch.func.vjp`` does. Each evaluation
gets its own leaves, so that a tensor that f keeps from another evaluation is detected.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor
from torch.func import vjp
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..evaluation.auxiliary import AuxiliaryGradients
from ..evaluation.boundary import CaptureError, Entrance, guard, is_entered, is_guarded
from ..evaluation.closure import SameOperations, ends_of, now, refuse_kept, where_made
from ..evaluation.effects.standing import leaf_again
from ..evaluation.graph_print import print_of
from ..runtime.transforms import is_from_outside, outside_batches
from ..state.pair import Leaves
from .vjp import VJPs, alias, as_read, is_asked_for_leaves

Call = Callable[[int, Sequence[Tensor], Sequence[Tensor]], Leaves]
"""f in half step k, as a function of the state's leaves and the tensors in its arguments."""

Reading = Callable[[Leaves], Leaves]
"""What f reads of a state."""

_AccumulateGrad: type = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]

# ---- forward ---------------------------------------------------------------------------------


def watched(call: Call) -> Call:
    """f in a transform or a traced graph; raises if f reads a tensor it was not given."""

    def evaluate(k: int, leaves: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
        with torch.enable_grad():
            leaves, given = ([t.detach() for t in part] for part in (leaves, given))
            out = call(k, leaves, given)
        if any(value.requires_grad for value in out):
            raise _captured()
        return out

    return evaluate


def watched_eager(
    call: Call, sources: Sequence[Tensor], note: Callable[[int, Leaves, int], None]
) -> Call:
    """The same in eager mode: f runs as it will in the backward pass, and its graph is searched.

    The graph is dropped at once. A gradient that reaches a part of it that f kept raises. `sources`
    are the solve's own inputs; `note` is called with the half step, what f returned, and the print
    of its graph.
    """
    begun = now()
    entrance = Entrance()
    entrance.lead_from(sources)

    def evaluate(k: int, leaves: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
        mark = now()  # nodes that autograd makes from now on belong to this evaluation
        with torch.enable_grad(), entrance.opened():
            wanted = [*leaves, *(t for t in given if t.requires_grad)]
            entered = entrance.enter(wanted)
            read, rest = entered[: len(leaves)], iter(entered[len(leaves) :])
            known = [next(rest) if t.requires_grad else t.detach() for t in given]
            out = call(k, read, known)
            note(k, out, _check_graph(out, entered, begun, mark))
        guard(entered)
        return [value.detach() for value in out]

    return evaluate


def _check_graph(out: Sequence[Tensor], known: Sequence[Tensor], begun: int, mark: int) -> int:
    """The print of one evaluation's graph; CaptureError if it reaches a tensor it was not given."""
    stops = {t.grad_fn for t in known if t.grad_fn is not None}
    ends, older, nodes, edges = ends_of(out, mark, stops)
    if older is not None:
        if is_entered(older) or older._sequence_nr() >= begun:
            refuse_kept(where_made(older))
        raise _captured()
    ids = {id(tensor) for tensor in known}
    for end in ends:
        if end not in stops and id(end.variable) not in ids:
            _refuse_leaf(end.variable)
    return print_of(nodes, edges, ())[0]


def _refuse_leaf(leaf: Tensor) -> NoReturn:
    if is_guarded(leaf):
        refuse_kept("it was given there")
    raise _captured()


# ---- backward --------------------------------------------------------------------------------


class Product(Protocol):
    """Evaluations of f in the backward pass, and sums of the gradients of what it is given."""

    @abstractmethod
    def __call__(self, k: int, state: Leaves, seed: Leaves) -> tuple[Leaves, Leaves]:
        """f in half step k at the state, and the product of the seed with its Jacobian."""

    @abstractmethod
    def gradients(self) -> list[Tensor | None]:
        """The gradients of everything that f is given."""


class InPlace(Product):
    """By autograd, not differentiable: the products of the reversible adjoint, summed in place."""

    def __init__(
        self,
        call: Call,
        reading: Reading,
        given: Sequence[Tensor],
        wanted: Sequence[bool],
        *,
        accumulate_float32: bool,
        auxiliary: AuxiliaryGradients | None = None,
        prints: dict[int, int] | None = None,
    ) -> None:
        """Leaves for the wanted ones; `prints` of the graphs of the forward pass."""
        self.reading = reading
        rows = zip(given, wanted, strict=True)
        # In the forward pass they came through an entrance.
        self.given = [leaf_again(t, needs=want, computed=True) for t, want in rows]
        self.targets = [t for t in self.given if t.requires_grad]
        once = [False] * len(self.targets)  # the order of sums is not promised here
        again = SameOperations(prints) if prints and not is_asked_for_leaves() else None
        rest = {"accumulate_float32": accumulate_float32, "auxiliary": auxiliary, "again": again}
        self.products = VJPs(call, self.given, self.targets, once, **rest)  # type: ignore[arg-type]

    def __call__(self, k: int, state: Leaves, seed: Leaves) -> tuple[Leaves, Leaves]:
        """As ``Product``."""
        return self.products(k, self.reading(state), seed)

    def gradients(self) -> list[Tensor | None]:
        """As ``Product``."""
        guard(self.targets)
        found = iter(self.products.gradients())
        return [next(found) if t.requires_grad else None for t in self.given]


class Once(Product):
    """By autograd, not differentiable, for batched gradients: without in-place operations."""

    def __init__(
        self,
        call: Call,
        reading: Reading,
        given: Sequence[Tensor],
        wanted: Sequence[bool],
        *,
        accumulate_float32: bool,
        auxiliary: AuxiliaryGradients | None = None,
    ) -> None:
        """Differentiate with respect to the wanted ones."""
        self.auxiliary = auxiliary
        self.call, self.reading, self.given, self.accumulate_float32 = (
            call,
            reading,
            given,
            accumulate_float32,
        )
        self.places = [i for i, want in enumerate(wanted) if want]
        self.sums: list[Tensor | None] = [None] * len(given)

    def __call__(self, k: int, state: Leaves, seed: Leaves) -> tuple[Leaves, Leaves]:
        """As ``Product``."""
        with outside_batches(), torch.enable_grad():
            read = [self.target(leaf) for leaf in self.reading(state)]
            given = list(self.given)
            for i in self.places:
                given[i] = self.target(given[i])
            out = self.call(k, as_read(read), as_read(given))
        seeds = [*seed, *(() if self.auxiliary is None else self.auxiliary.of(k))]
        rows = [(value, s) for value, s in zip(out, seeds, strict=True) if s is not None]
        pairs = [(value, s.to(value.dtype)) for value, s in rows if value.requires_grad]
        values = self.values(out[: len(seed)])
        if not pairs:
            return values, [torch.zeros_like(s) for s in seed]
        roots, cotangents = zip(*pairs, strict=True)
        found = torch.autograd.grad(
            roots,
            [*read, *(given[i] for i in self.places)],
            cotangents,
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
        for i, part in zip(self.places, found[len(read) :], strict=True):
            if part is not None:
                summand = part.to(
                    _sum_dtype(self.given[i], accumulate_float32=self.accumulate_float32)
                )
                total = self.sums[i]
                self.sums[i] = summand if total is None else total + summand
        rows = zip(found[: len(read)], seed, strict=True)
        return values, [torch.zeros_like(s) if part is None else part for part, s in rows]

    def target(self, tensor: Tensor) -> Tensor:
        """What f reads instead of a tensor, and what is differentiated."""
        return tensor.detach().requires_grad_()

    def values(self, out: Leaves) -> Leaves:
        """What f returned."""
        return [value.detach() for value in out]

    def gradients(self) -> list[Tensor | None]:
        """As ``Product``."""
        return _narrowed(self.sums, self.given)


class Again(Once):
    """By autograd, as differentiable tensors."""

    def target(self, tensor: Tensor) -> Tensor:
        """An alias at which the first derivative ends, and through which the second one passes.

        An argument may depend on a parameter that f reads too, which must not be counted twice.
        """
        return alias(tensor)

    def values(self, out: Leaves) -> Leaves:
        """What f returned."""
        return out


class Traced(Product):
    """By ``torch.func.vjp``, for everything that is differentiable."""

    def __init__(
        self,
        call: Call,
        reading: Reading,
        given: Sequence[Tensor],
        *,
        accumulate_float32: bool,
        auxiliary: AuxiliaryGradients | None = None,
    ) -> None:
        """Start with zero sums."""
        self.auxiliary = auxiliary
        self.call, self.reading, self.given = call, reading, given
        self.places = [i for i, t in enumerate(given) if is_differentiable(t)]
        self.sums: list[Tensor | None] = [None] * len(given)
        for i in self.places:
            dtype = _sum_dtype(given[i], accumulate_float32=accumulate_float32)
            self.sums[i] = torch.zeros_like(given[i], dtype=dtype)

    def __call__(self, k: int, state: Leaves, seed: Leaves) -> tuple[Leaves, Leaves]:
        """As ``Product``."""

        def f(state: Leaves, values: Leaves) -> list[Tensor]:
            given = list(self.given)
            for i, value in zip(self.places, values, strict=True):
                given[i] = value
            out = self.call(k, self.reading(state), given)
            rows = zip(out[len(seed) :], of_aux, strict=True)
            return [*out[: len(seed)], *(value for value, s in rows if s is not None)]

        of_aux = [] if self.auxiliary is None else self.auxiliary.of(k)
        out, back, *_ = vjp(f, state, [self.given[i] for i in self.places])
        seeds = [*seed, *(s for s in of_aux if s is not None)]
        of_state, parts = back([s.to(v.dtype) for s, v in zip(seeds, out, strict=True)])
        out = out[: len(seed)]
        for i, part in zip(self.places, parts, strict=True):
            self.sums[i] = self.sums[i] + part
        return out, of_state

    def gradients(self) -> list[Tensor | None]:
        """As ``Product``."""
        return _narrowed(self.sums, self.given)


def is_differentiable(tensor: Tensor) -> bool:
    """Whether the tensor's dtype can have a gradient."""
    return tensor.is_floating_point() or tensor.is_complex()


def _sum_dtype(tensor: Tensor, *, accumulate_float32: bool) -> torch.dtype:
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if accumulate_float32 and half else tensor.dtype


def _narrowed(sums: Sequence[Tensor | None], given: Sequence[Tensor]) -> list[Tensor | None]:
    return [s if s is None else s.to(t.dtype) for s, t in zip(sums, given, strict=True)]


# ---- what leaves an evaluation, and what is reached from it ----------------------------------


class Levels(TorchFunctionMode):
    """Raise for a tensor of a transform outside the solve: its derivative would be lost."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(is_from_outside(t) for t in pytree.tree_leaves((args, kwargs))):
            raise _captured()
        return func(*args, **(kwargs or {}))


def _captured() -> CaptureError:
    return CaptureError(
        "f: expected to read its arguments and its own parameters with adjoint='functional', got "
        "another tensor that is differentiated; pass it as an argument, solve(f, z0, tensor)"
    )
