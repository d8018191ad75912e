"""Whether f depends only on its state, its arguments and the random numbers.

``assert_repeatable`` is public in ``torch_revdeq.testing``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .effects.holdings import Holdings, search
from .effects.kept_state import Growth, KeptState
from .effects.written import Written
from .flat_function import flatten
from .keywords import joined, named
from .rng import RngReplay

_TIMES = 3
"""Evaluations in each mode. The third tells growth from a single change."""


def assert_repeatable(
    f: Callable[..., Any], z0: Any, *args: Any, kwargs: dict[str, Any] | None = None, **more: Any
) -> None:
    """Evaluate f several times from one state, and assert that the result is the same each time.

    The solver evaluates f many times in a solve, and again in the backward pass. An f that reads
    what an earlier evaluation left (a counter, a cache, a buffer) is a different function each
    time, also under ``torch.no_grad()``, where no gradient check would show it. f is evaluated
    three times without grad mode and three times with it, each time from copies of z0 and the
    tensors in the arguments, and from the same random state. Afterwards the buffers, attributes and
    containers that f holds are restored.

    f may write what it does not read, such as running statistics, a counter or its last auxiliary
    output.

    Args:
        f: as in ``solve``.
        z0: as in ``solve``.
        args: as in ``solve``.
        kwargs: keyword arguments of f.
        more: named parameters of f, as in ``solve``.

    Raises:
        TypeError: a keyword that f has no parameter of that name for.
        AssertionError: names what differs or was changed: the result; z0 or an argument, in place;
            a tensor, list or dict that f keeps and that grew.
    """
    known = named(f)
    for name in more:
        if name not in known:
            raise TypeError(
                f"{name}: expected a named parameter of f, got none of that name; pass other "
                "keywords of f in kwargs={...}, and options of solve to assert_exact_gradients"
            )
    values = (z0, args, joined(kwargs, more))
    leaves = pytree.tree_leaves(values)
    held = search((f, *(leaf for leaf in leaves if not isinstance(leaf, Tensor))))
    random = RngReplay(flatten("z0", z0)[0][0].device, "auto")
    try:
        for grad in (False, True):
            writes, state = Written(held), KeptState(held)
            writes.end()
            with writes.kept(), state.kept(every=True), torch.set_grad_enabled(grad):
                _evaluate(f, values, held, random, writes, state)
    finally:
        random.restore(random.first)


def _evaluate(
    f: Callable[..., Any],
    values: tuple[Any, tuple[Any, ...], dict[str, Any]],
    held: Holdings,
    random: RngReplay,
    writes: Written,
    state: KeptState,
) -> None:
    """The evaluations in one mode."""
    growth, sizes = Growth(held), _sizes(held)
    results: list[list[Any]] = []
    for i in range(_TIMES):
        random.restore(random.first)
        z, args, kwargs = pytree.tree_map(_copy, values)
        result = f(z, *args, **kwargs)
        _same_inputs(values, (z, args, kwargs))
        if i == 0:
            growth.after_first()
        else:
            growth.after_another()
        results.append([_value(leaf) for leaf in pytree.tree_leaves(result)])
    if grown := growth.at_the_end():
        raise AssertionError(f"f: {grown} with each evaluation")
    for (name, before), (_, after) in zip(sizes, _sizes(held), strict=True):
        if after >= before + _TIMES:
            raise AssertionError(
                f"f: {name} grew from {before} to {after} elements in {_TIMES} "
                "evaluations; it grows with every half step of a solve"
            )
    for i, other in enumerate(results[1:], start=2):
        if not _equal(results[0], other):
            state.end()
            causes = [change.name for change in writes.changed()]
            causes += [_named(place, held) for place in state.changed]
            found = f"; it changed {', '.join(causes)}" if causes else ""
            mode = "with" if torch.is_grad_enabled() else "without"
            raise AssertionError(
                f"f: evaluation {i} from the same state, arguments and random numbers gave a "
                f"different result than the first, {mode} grad mode{found}"
            )


def _copy(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad and torch.is_grad_enabled())


def _value(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _same_inputs(before: Any, after: Any) -> None:
    for name, first, second in zip(
        ("its state", "an argument", "a keyword argument"), before, after, strict=True
    ):
        one, two = pytree.tree_leaves(first), pytree.tree_leaves(second)
        if not _equal(one, two):
            raise AssertionError(f"f: changed {name} in place; use an out-of-place operation first")


def _equal(one: list[Any], two: list[Any]) -> bool:
    """Whether tensors are equal, counting NaN as equal to NaN; other leaves are not compared."""
    if len(one) != len(two):
        return False
    pairs = [(a, b) for a, b in zip(one, two, strict=True) if isinstance(a, Tensor)]
    return all(
        isinstance(b, Tensor)
        and a.shape == b.shape
        and a.dtype == b.dtype
        and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
        for a, b in pairs
    )


def _sizes(held: Holdings) -> list[tuple[str, int]]:
    return [(_named(c, held), len(c)) for c in held.containers]


def _named(place: Any, held: Holdings) -> str:
    """In words: an attribute of an object, or the kind of container."""
    for owner, space in held.own:
        if space is place:
            return f"attributes of {owner}"
        for name, value in space.items():
            if value is place:
                return f"{name!r} in {owner}"
    return f"a {type(place).__name__} that it holds"
