"""Lists of leaves: one call for a state of eight tensors, against a loop of single calls.

`loop` calls the op of this project on one leaf after the other; `_foreach_lerp_` is torch's own op
on lists, where there is one. Large leaves show what a list costs where memory is the limit, leaves
of 512 elements what it saves where the call is. The bytes are those of the leaves: see half_step.py
and passes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import revdeq_kernels
from bench.core import providers
from bench.core.case import Bind, Call, Case, Plan, Provider, Tensors, binds, elements_of
from bench.ops import half_step, passes

BETA = 0.5
LEAVES, SMALL_LEAF = 8, 512
PASS = "invert_z_adjoint_y_exact_"
PASS_F = torch.bfloat16
HALF_STEP_TYPES = (torch.float32, torch.float32, None)
# What the calls below read and write; other tensors of a set belong to `copy_`.
OF_A_LEAF = ("state", "f", "cast", "digits", "grad", "vjp", "seed")


def leaf_sizes(elements: int) -> list[int]:
    """Elements of each leaf; the last one may be smaller."""
    most = -(-elements // LEAVES)
    return [min(most, elements - begin) for begin in range(0, elements, most)]


def leaves_of(tensors: Tensors) -> list[Tensors]:
    """The leaves: slices of every tensor, so that a set remains a few tensors."""
    sizes = leaf_sizes(tensors["state"].numel())
    digits = [revdeq_kernels.digit_bytes(size, BETA) for size in sizes]
    parts = {
        name: tensors[name].split(digits if name == "digits" else sizes)
        for name in OF_A_LEAF
        if name in tensors
    }
    return [{name: part[k] for name, part in parts.items()} for k in range(len(sizes))]


def bind_list(bind: Callable[[Any], Call]) -> Bind:
    """One call with a list in place of every tensor."""

    def bind_leaves(tensors: Tensors) -> Call:
        leaves = leaves_of(tensors)
        return bind({name: [leaf[name] for leaf in leaves] for name in leaves[0]})

    return bind_leaves


def bind_loop(bind: Bind) -> Bind:
    """One call for each leaf: also the definition of a call with lists."""

    def bind_leaves(tensors: Tensors) -> Call:
        calls = [bind(leaf) for leaf in leaves_of(tensors)]

        def loop() -> torch.Tensor:
            for call in calls:
                call()
            return tensors["state"]

        return loop

    return bind_leaves


def make_half_step(elements: int, *, device: torch.device) -> Tensors:
    """The tensors of an update."""
    return half_step.make(elements, device=device, dtypes=HALF_STEP_TYPES)


def make_pass(elements: int, *, device: torch.device) -> Tensors:
    """The tensors of the pass; any bytes are digits of base 2, here as many as the leaves take."""
    tensors = passes.make(elements, op=PASS, beta=BETA, device=device, f=PASS_F)
    count = sum(revdeq_kernels.digit_bytes(size, BETA) for size in leaf_sizes(elements))
    digits = torch.randint(0, 256, (count,), dtype=torch.uint8, device=device)
    del tensors["float64_state"]
    return tensors | {"digits": digits}


bind_update = binds(revdeq_kernels.update_, *half_step.ARGUMENTS)
bind_pass = passes.bind_op(PASS, BETA, PASS_F)


def case_providers(plan: Plan, bind: Bind, with_foreach: bool) -> Iterator[Provider]:
    """The loop, torch's op, then the backends of the project."""
    loop = bind_loop(bind)
    yield providers.alternative("loop", loop, loop, tolerance=0)
    if with_foreach:
        foreach = binds(torch._foreach_lerp_, *half_step.ARGUMENTS)  # type: ignore[attr-defined]
        yield providers.alternative("_foreach_lerp_", bind_list(foreach), loop)
    yield from providers.backend_providers(plan, bind_list(bind), loop)


def update_case(plan: Plan, elements: int, bytes_moved: int | None, variant: str) -> Case:
    """An update of a float32 state."""
    return Case(
        benchmark="lists",
        op="update_.list",
        dtypes={"state": torch.float32, "f": torch.float32},
        elements=elements,
        bytes=bytes_moved,
        make=partial(make_half_step, device=plan.device),
        providers=tuple(case_providers(plan, bind_update, with_foreach=True)),
        beta=BETA,
        variant=variant,
        settle=half_step.settle,
    )


def cases(plan: Plan, size_mb: float) -> Iterator[Case]:
    """Large leaves of two ops, and small ones of one."""
    elements = elements_of(size_mb, torch.float32)
    sizes = leaf_sizes(elements)
    step = half_step.bytes_moved(elements, *HALF_STEP_TYPES)
    yield update_case(plan, elements, step, f"{LEAVES} leaves")
    yield Case(
        benchmark="lists",
        op=f"{PASS}.list",
        dtypes=passes.dtypes_of(PASS, PASS_F),
        elements=elements,
        bytes=sum(passes.bytes_moved(size, PASS, BETA, PASS_F) for size in sizes),
        make=partial(make_pass, device=plan.device),
        providers=tuple(case_providers(plan, bind_pass, with_foreach=False)),
        beta=BETA,
        settle=passes.settle,
    )
    yield update_case(plan, LEAVES * SMALL_LEAF, None, f"{LEAVES} leaves of {SMALL_LEAF}")
