"""Arguments that share memory: an error if one of them is written, allowed if both are read."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import revdeq_kernels as rk
from revdeq_kernels.core.op import OPS as KNOWN
from tests.conftest import BACKENDS
from tests.ops.arguments import (
    EXACT_OPS,
    OPS,
    STEPS,
    WRITTEN,
    Memory,
    as_called,
    assert_compiled_op_refuses,
    assert_same_outcome,
    call,
    expected,
    good_arguments,
    outcome,
    overload_of,
    tensors,
)

SHAPE = (8, 16)


def pairs(op: str) -> list[tuple[str, str]]:
    """Every two tensors of an op, in the order in which its checks compare them."""
    good = good_arguments(op)
    args, named = as_called(op, good)
    order = [name for name, t in KNOWN[op].check_arguments(op, *args, **named) if t is not None]
    assert sorted(order) == sorted(tensors(good)), op
    return list(itertools.combinations(order, 2))


FORBIDDEN = [(op, *pair) for op in OPS for pair in pairs(op) if WRITTEN[op] & set(pair)]
ALLOWED = [(op, *pair) for op in OPS for pair in pairs(op) if not WRITTEN[op] & set(pair)]


def share(arguments: dict[str, Any], first: str, second: str, distance: int) -> dict[str, Any]:
    """The arguments, with `second` so many bytes behind the beginning of `first` in one buffer."""
    buffer = torch.zeros(4096, dtype=torch.uint8)
    moved = {}
    for name, start in ((first, 0), (second, distance)):
        original: Tensor = arguments[name]
        place = buffer[start : start + original.nbytes].view(original.dtype)
        moved[name] = place.view(original.shape).copy_(original)
    return arguments | moved


@pytest.mark.parametrize("reach", ["start", "end"])
@pytest.mark.parametrize(("op", "first", "second"), FORBIDDEN)
def test_overlap_with_what_is_written_is_refused(
    op: str, first: str, second: str, reach: str
) -> None:
    arguments = good_arguments(op, SHAPE)
    last = max(0, arguments[first].nbytes - 8)
    arguments = share(arguments, first, second, distance=0 if reach == "start" else last)
    memory = Memory(arguments)
    message = (
        f"{op}: {second}: expected memory of its own, got memory that overlaps {first}; "
        f"pass {second}.clone() or another buffer"
    )
    for backend in BACKENDS:
        with rk.backend(backend), pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call(op, arguments)
    assert_compiled_op_refuses(op, arguments, message)
    memory.assert_untouched()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("op", "first", "second"), FORBIDDEN)
def test_neighbours_in_memory_are_taken(op: str, first: str, second: str, backend: str) -> None:
    arguments = good_arguments(op, SHAPE)
    distance = -(-arguments[first].nbytes // 8) * 8
    arguments = share(arguments, first, second, distance)
    want = expected(op, arguments)
    with rk.backend(backend):
        result = call(op, arguments)
    assert_same_outcome(outcome(arguments, result), want, (op, backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("op", "first", "second"), ALLOWED)
def test_what_is_only_read_may_overlap(op: str, first: str, second: str, backend: str) -> None:
    shared = share(good_arguments(op, SHAPE), first, second, distance=0)
    want = expected(op, shared)
    with rk.backend(backend):
        result = call(op, shared)
    assert_same_outcome(outcome(shared, result), want, (op, backend))


def test_pairs_are_those_of_the_ops() -> None:
    """Two tensors that are read may share memory: f and digits, f and vjp, and so on."""
    for op in OPS:
        arguments = [a for a in overload_of(op)._schema.arguments if a.name in good_arguments(op)]
        written = [a.alias_info is not None and a.alias_info.is_write for a in arguments]
        kept = ["Tensor" in str(a.type) and not w for a, w in zip(arguments, written, strict=True)]
        read, total = sum(kept), math.comb(sum(kept) + sum(written), 2)
        assert sum(case[0] == op for case in ALLOWED) == math.comb(read, 2), op
        assert sum(case[0] == op for case in FORBIDDEN) == total - math.comb(read, 2), op
    assert len(ALLOWED) >= 19


@pytest.mark.parametrize("op", STEPS)
def test_views_that_interleave_are_refused(op: str) -> None:
    """A view of the state's own memory, in another order or one element for all, overlaps too."""
    square = good_arguments(op, (8, 8), f=torch.float32, cast=torch.float32)
    own = square["state"].view(torch.float32)
    for f in (own, own.t(), own[:1].expand(8, 8), own[3, 5].expand(8, 8)):
        for backend in BACKENDS:
            with rk.backend(backend), pytest.raises(ValueError, match="f: expected memory of its"):
                call(op, square | {"f": f})


@pytest.mark.parametrize("op", STEPS)
def test_f_with_gaps_that_reach_into_the_state_is_refused(op: str) -> None:
    arguments = good_arguments(op, (8,), f=torch.float32, cast=torch.float32)
    buffer = torch.zeros(32)
    arguments["f"] = buffer[::4]
    for start in (0, 12, 24):
        arguments["state"] = buffer[start : start + 8].view(arguments["state"].dtype)
        for backend in BACKENDS:
            with rk.backend(backend), pytest.raises(ValueError, match="f: expected memory of its"):
                call(op, arguments)


@pytest.mark.parametrize("op", EXACT_OPS)
def test_empty_tensors_overlap_nothing(op: str) -> None:
    """Not even where they stand in the middle of another one's memory."""
    digits = torch.zeros(64, dtype=torch.uint8)
    inside = digits[32:32].view(torch.int32)
    arguments = good_arguments(op, (0,), f=torch.float32, cast=torch.float32)
    arguments |= {"digits": digits, "state": inside, "f": inside.view(torch.float32)}
    for backend in BACKENDS:
        with rk.backend(backend):
            call(op, arguments)
    call(op, arguments, "revdeq")


class Plain(Tensor):
    """A subclass that adds nothing."""


@pytest.mark.parametrize("leaves", [False, True])
def test_a_tensor_of_a_subclass_has_memory_too(leaves: bool) -> None:
    buffer = torch.zeros(64)
    state, f = (buffer[k : k + 16].as_subclass(Plain) for k in (0, 8))
    with pytest.raises(Exception, match="f: expected memory of its own, got memory that overlaps"):
        rk.update_([state], [f], 0.5) if leaves else rk.update_(state, f, 0.5)
    assert not buffer.any()
