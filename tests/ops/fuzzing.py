"""Arbitrary arguments: hypothesis strategies derived from the table in fuzz_table.py.

They draw the examples of fuzz_example.py. Mutations are functions that change an example; they are
listed in MUTATIONS.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st

import revdeq_kernels as rk
from revdeq_kernels.core.roles import BETAS, DIGITS, FLAG, FREE
from tests.ops.fuzz_example import KINDS, Example, View
from tests.ops.fuzz_table import ALL_DTYPES, F32, Spec

# ---- drawing ---------------------------------------------------------------------------------

Draw = Callable[[st.SearchStrategy[Any]], Any]

SMALL = st.lists(st.sampled_from((1, 2, 3, 5, 7, 8, 1, 2, 4, 17, 33, 0)), max_size=4)
LONG = st.integers(1000, 5000).map(lambda n: [n])
LENGTHS = st.sampled_from((*([SMALL] * 39), LONG))
ORDERS = [st.sampled_from(list(itertools.permutations(range(n)))) for n in range(6)]
STRIDES = st.sampled_from((0, 1, 2, 3, 4, 7, 8, 40))
ONE_SHAPE = st.sampled_from(((1,), (), (1, 1)))
SEEDS, OFFSETS = st.integers(0, 2**31), st.sampled_from((0, 0, 0, 1, 3, 8, 17))
FILLS = st.sampled_from(("ordinary", "ordinary", "mixed", "bits"))
TAILS, EXTRA = st.sampled_from((0, 64)), st.sampled_from((0, 0, 1, 40))
COUNTS = st.sampled_from((0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 3))
LAYOUTS = st.sampled_from(("lead", "lead", "plain", "order", "gaps", "expanded", "any"))
BOOLEANS = st.booleans()
DTYPES = st.sampled_from(ALL_DTYPES)


def draw_shape(draw: Draw) -> tuple[int, ...]:
    """Up to four dimensions and 256 elements; one in forty has one dimension of up to 5000."""
    shape = draw(draw(LENGTHS))
    while len(shape) > 1 and math.prod(shape) > 256:
        shape = shape[:-1]
    return tuple(shape)


def in_order(shape: tuple[int, ...], order: Sequence[int], step: int = 1) -> tuple[int, ...]:
    """Strides without gaps for the dimensions in `order`, the innermost first, or with gaps."""
    strides = [0] * len(shape)
    for dim in order:
        strides[dim], step = step, step * max(1, shape[dim])
    return tuple(strides)


def plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor."""
    return in_order(shape, range(len(shape))[::-1])


def draw_strides(draw: Draw, shape: tuple[int, ...], lead: tuple[int, ...]) -> tuple[int, ...]:
    """Any strides; `lead` are the strides of a dense tensor."""
    layout = draw(LAYOUTS)
    if layout == "order":
        return in_order(shape, draw(ORDERS[len(shape)]))
    if layout == "gaps":
        return in_order(shape, draw(ORDERS[len(shape)]), 3)
    if layout == "expanded":
        return tuple(0 if draw(BOOLEANS) else s for s in plain(shape))
    if layout == "any":
        return tuple(draw(STRIDES) for _ in shape)
    return lead if layout == "lead" else plain(shape)


def draw_views(
    draw: Draw, spec: Spec, dtypes: tuple[torch.dtype | None, ...], example: Example
) -> dict[str, View]:
    """Valid views for all tensors of one call."""
    shape = draw_shape(draw)
    # The stride of a dimension with one element is irrelevant.
    odd = 40 if 1 in shape and draw(BOOLEANS) else None
    dense = in_order(shape, draw(ORDERS[len(shape)]) if draw(BOOLEANS) else range(len(shape))[::-1])
    kind, seed, views = draw(FILLS), draw(SEEDS), {}
    for (name, role), dtype in zip(spec.tensors.items(), dtypes, strict=True):
        if dtype is None:
            continue
        size, strides = shape, dense
        if role == FREE:
            strides = draw_strides(draw, shape, dense)
        elif role == DIGITS:
            needed = rk.digit_bytes(math.prod(shape), example.values["beta"])
            size, strides = (needed + draw(EXTRA),), (1,)
        elif role in (FLAG, BETAS):
            size = draw(ONE_SHAPE) if role == FLAG else ()
            strides = (1,) * len(size)
        elif odd is not None:
            strides = tuple(odd if n == 1 else s for n, s in zip(size, strides, strict=True))
        start = draw(OFFSETS) * dtype.itemsize
        views[name] = View(dtype, size, strides, len(example.fills), start)
        example.fills.append(("beta" if role == BETAS else kind, dtype, seed + len(example.fills)))
    return views


@st.composite
def examples(draw: Draw, spec: Spec, op: str) -> Example:
    """Valid arguments for at least half of the examples, otherwise with one to three mutations."""
    numbers = {name: draw(number.good) for name, number in spec.numbers.items()}
    example = Example(spec.op, numbers, [], draw(TAILS))
    dtypes = draw(st.sampled_from(spec.dtypes))
    if spec.lists:
        entries = [draw_views(draw, spec, dtypes, example) for _ in range(draw(st.integers(1, 3)))]
        for name, role in spec.tensors.items():
            if name in entries[0]:
                found = [entry[name] for entry in entries]
                example.values[name] = found[0] if role in (FLAG, BETAS) else found
    else:
        example.values |= draw_views(draw, spec, dtypes, example)
    for _ in range(draw(COUNTS)):
        draw(MUTATIONS)(draw, spec, example)
        example.good = False
    return example


# ---- mutations -------------------------------------------------------------------------------


def a_view(draw: Draw, example: Example) -> View:
    """One of the views; an unused view if earlier mutations have left none."""
    views = list(example.views().values())
    return draw(st.sampled_from(views)) if views else View(F32, (), (), 0)


def mutate_dtype(draw: Draw, spec: Spec, example: Example) -> None:
    view = a_view(draw, example)
    view.dtype = draw(DTYPES)
    view.start = -(-view.start // 16) * 16


def mutate_shape(draw: Draw, spec: Spec, example: Example) -> None:
    view = a_view(draw, example)
    shape = view.shape
    place = draw(st.integers(0, len(shape)))
    view.shape = draw(
        st.sampled_from(
            (
                shape[::-1],
                (*shape[:place], 1, *shape[place:]),
                (*shape[:place], 0, *shape[place + 1 :]),
                (*shape[:place], 1, *shape[place + 1 :]),
                shape[:place] + shape[place + 1 :],
                (*shape[1:], 1),
                (math.prod(shape),),
                tuple(n + 1 for n in shape),
                tuple(max(0, n - 1) for n in shape),
                draw_shape(draw),
            )
        )
    )[:5]
    view.strides = plain(view.shape)


def mutate_strides(draw: Draw, spec: Spec, example: Example) -> None:
    view = a_view(draw, example)
    view.strides = draw_strides(draw, view.shape, plain(view.shape))


def mutate_place(draw: Draw, spec: Spec, example: Example) -> None:
    """Two tensors in one buffer, in any order: adjacent, identical, or partly overlapping."""
    views = list(example.views().values())
    if len(views) < 2:
        return
    first, second = draw(st.sampled_from(list(itertools.permutations(views, 2))))
    distances = (0, first.span, -second.span, draw(st.integers(-second.span, first.span)))
    start = first.start + draw(st.sampled_from(distances))
    start -= start % second.dtype.itemsize
    if start < 0:
        shift = -(start // 16) * 16
        start += shift
        for view in views:
            view.start += shift if view.buffer == first.buffer else 0
    second.buffer, second.start = first.buffer, start


def mutate_device(draw: Draw, spec: Spec, example: Example) -> None:
    chosen = example.views().values() if draw(BOOLEANS) else [a_view(draw, example)]
    for view in chosen:
        view.kind = "meta"


def mutate_grad(draw: Draw, spec: Spec, example: Example) -> None:
    view = a_view(draw, example)
    view.requires_grad = True  # if its dtype can
    example.grad_mode = draw(BOOLEANS)


def mutate_kind(draw: Draw, spec: Spec, example: Example) -> None:
    a_view(draw, example).kind = draw(st.sampled_from(list(KINDS)))


def mutate_number(draw: Draw, spec: Spec, example: Example) -> None:
    if spec.numbers:
        name = draw(st.sampled_from(list(spec.numbers)))
        example.values[name] = draw(spec.numbers[name].odd)


def mutate_list(draw: Draw, spec: Spec, example: Example) -> None:
    """A shorter list, not a list, or a tuple; or a list instead of a tensor."""
    name = draw(st.sampled_from(list(spec.tensors)))
    value = example.values.get(name)
    if isinstance(value, View):
        example.values[name] = draw(st.sampled_from(([value], (value,), [value, value], [])))
    elif value:
        example.values[name] = draw(st.sampled_from((value[:-1], tuple(value), value[0], [])))


MUTATIONS = st.sampled_from(
    (
        *(mutate_dtype, mutate_shape, mutate_strides, mutate_place, mutate_place, mutate_device),
        *(mutate_grad, mutate_kind, mutate_number, mutate_number, mutate_list),
    )
)
