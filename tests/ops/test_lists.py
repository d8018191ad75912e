"""Lists of leaves: one call returns the results of separate calls; invalid lists raise."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import revdeq_kernels as rk
from revdeq_kernels.core.lists import leaf_of
from tests.conftest import BACKENDS, random_state
from tests.ops.arguments import (
    FLOAT_OPS,
    LISTS,
    PASSES,
    Memory,
    arguments_of_leaf,
    assert_compiled_op_refuses,
    assert_same_outcome,
    call,
    copies,
    good_arguments,
    lists_of,
    outcome,
    refusal,
    refusal_of_kernel,
    tensors,
)

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_list = pytest.mark.parametrize("op", LISTS)


def assert_each_is_as_alone(op: str, arguments: dict[str, Any], backend: str) -> None:
    """Raise AssertionError unless the list gives the bits of a call for each leaf."""
    alone = copies(arguments)
    name = op.partition(".")[0]
    given = {n: a for n, a in alone.items() if n != "out"}
    count = len(next(iter(given.values())))
    with rk.backend(backend):
        results = [getattr(rk, name)(**leaf_of(given, k)) for k in range(count)]
        if name == "quantize":
            for out, result in zip(alone["out"], results, strict=True):
                out.copy_(result)
        got = call(op, arguments)
    if name == "dequantize":
        assert_same_outcome(tensors({"r": got}), tensors({"r": results}), op)
    elif name == "residual":
        assert torch.equal(got, torch.stack(results))
    assert_same_outcome(outcome(arguments, None), outcome(alone, None), (op, backend))


@every_backend
@every_list
def test_leaves_come_out_as_they_do_alone(op: str, backend: str) -> None:
    """Different sizes, an empty one, and more leaves than one launch takes."""
    shapes = [(33,), (0,), (5, 7), (1,), (), (1003,), *[(3, n) for n in range(1, 16)]]
    if backend == "triton":
        shapes = shapes[:4]  # every number of leaves is another kernel to the interpreter
    leaves = [arguments_of_leaf(op, s, seed=9 * k) for k, s in enumerate(shapes)]
    assert_each_is_as_alone(op, lists_of(op, leaves), backend)


@every_backend
@every_list
def test_leaves_of_several_programs(op: str, backend: str) -> None:
    """Multiples of 16, which are of one kind to Triton: one launch finds all of them."""
    sizes = (1040, 9232, 16, 4112)
    leaves = [arguments_of_leaf(op, (n,), seed=9 * n) for n in sizes]
    assert_each_is_as_alone(op, lists_of(op, leaves), backend)


@every_backend
@pytest.mark.parametrize("op", [f"{name}.list" for name in (*FLOAT_OPS, "residual", *PASSES[:3])])
def test_leaves_of_different_types(op: str, backend: str) -> None:
    types = [
        (torch.float32, torch.bfloat16),
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16),
    ]
    leaves = [
        arguments_of_leaf(op, (n + 30,), state=state, f=f, cast=f, seed=9 * n)
        for n, (state, f) in enumerate(types)
    ]
    assert_each_is_as_alone(op, lists_of(op, leaves), backend)


@every_backend
def test_exact_leaves_of_different_types(backend: str) -> None:
    for op in ("update_exact_.list", "invert_y_adjoint_z_exact_.list"):
        leaves = [
            arguments_of_leaf(op, (n + 30,), f=f, cast=f, seed=9 * n)
            for n, f in enumerate((torch.float32, torch.bfloat16, torch.float32, torch.float16))
        ]
        assert_each_is_as_alone(op, lists_of(op, leaves), backend)


def test_large_leaves_share_the_threads() -> None:
    """Several tasks, whose bounds fall inside leaves."""
    sizes = (100_003, 5, 70_001, 200_000)
    for op in ("update_.list", "update_exact_.list", "invert_z_adjoint_y_exact_.list"):
        leaves = [arguments_of_leaf(op, (n,), seed=9 * k) for k, n in enumerate(sizes)]
        assert_each_is_as_alone(op, lists_of(op, leaves), "cpu")


@every_backend
def test_one_flag_is_raised_by_any_leaf(backend: str) -> None:
    for bad in range(3):
        arguments = good_arguments("update_exact_.list")
        arguments["f"][bad].view(-1)[0] = float("inf")
        with rk.backend(backend):
            rk.update_exact_(**arguments)
        assert arguments["flag"].item() == 1
        flag = torch.zeros(1, dtype=torch.int32)
        with rk.backend(backend):
            rk.quantize(arguments["f"], 16, flag=flag)
        assert flag.item() == 1


def test_tuples_and_lists_are_alike() -> None:
    state, f = [random_state(7, torch.float32, k) for k in (0, 1)], torch.ones(7)
    one, two = [t.clone() for t in state], tuple(t.clone() for t in state)
    assert rk.update_(one, (f, f), 0.7) is one
    assert rk.update_(two, [f, f], 0.7) is two
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert torch.equal(one[0], rk.update_(state[0].clone(), f, 0.7))


# ---- what is refused -------------------------------------------------------------------------

COUNTED = [
    (op, name)
    for op in LISTS
    for position, (name, value) in enumerate(good_arguments(op).items())
    if isinstance(value, list) and position > 0 and name != "out"
]


def message_of(op: str, arguments: dict[str, Any], kind: type[Exception]) -> str:
    """What the public function says, the same on every backend; nothing is written."""
    memory = Memory(arguments)
    given = {n: a for n, a in arguments.items() if n != "out"}
    messages = {refusal(op.partition(".")[0], given, backend, kind) for backend in BACKENDS}
    assert len(messages) == 1
    memory.assert_untouched()
    return messages.pop()


@pytest.mark.parametrize(("op", "name"), COUNTED)
def test_lists_of_different_lengths_are_refused(op: str, name: str) -> None:
    arguments = good_arguments(op)
    lead = next(n for n, a in arguments.items() if isinstance(a, list))
    for changed, count in ((arguments[name][:2], 2), (arguments[name] * 2, 6)):
        message = message_of(op, arguments | {name: changed}, ValueError)
        assert message == (
            f"{op.partition('.')[0]}: {name}: expected 3 tensors, one for each leaf of {lead}, "
            f"got {count}; pass one tensor per leaf, in the same order"
        )
        assert_compiled_op_refuses(op, arguments | {name: changed}, message)


@pytest.mark.parametrize(("op", "name"), COUNTED)
def test_one_tensor_beside_lists_is_refused(op: str, name: str) -> None:
    arguments = good_arguments(op)
    message = message_of(op, arguments | {name: arguments[name][0]}, TypeError)
    assert f": {name}: expected a list of tensors, one for each leaf of " in message


def test_a_list_beside_one_tensor_is_refused() -> None:
    arguments = good_arguments("update_")
    message = message_of("update_", arguments | {"f": [arguments["f"]]}, TypeError)
    assert message.startswith("update_: f: expected a tensor, got list; ")


def test_an_empty_list_is_refused() -> None:
    arguments = {"state": [], "f": [], "beta": 0.5}
    message = message_of("update_", arguments, ValueError)
    assert message.startswith("update_: state: expected at least one tensor, got 0; ")
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        call("update_.list", arguments, "revdeq")
    beside = refusal_of_kernel("update_.list", arguments | {"f": [torch.ones(1)]})
    assert beside.startswith("update_: state: an empty list; ")


@every_list
def test_a_bad_leaf_is_named(op: str) -> None:
    arguments = good_arguments(op)
    name = next(n for n, a in arguments.items() if isinstance(a, list) and n != "out")
    arguments[name][1] = arguments[name][1].to(torch.int64)
    message = message_of(op, arguments, TypeError)
    assert re.match(rf"{op.partition('.')[0]}: leaf 1: {name}: expected torch\..*, got", message)
    assert_compiled_op_refuses(op, arguments, message)


def test_a_leaf_that_is_no_tensor_is_refused() -> None:
    arguments = good_arguments("update_.list")
    arguments["f"][2] = None
    message = message_of("update_.list", arguments, TypeError)
    assert message.startswith("update_: leaf 2: f: expected a tensor, got NoneType; ")


def test_leaves_on_two_devices_are_refused() -> None:
    arguments = good_arguments("adjoint_.list")
    for name in ("grad", "vjp", "seed"):
        arguments[name][1] = arguments[name][1].to("meta")
    message = message_of("adjoint_.list", arguments, ValueError)
    assert message.startswith(
        "adjoint_: leaf 1: grad: expected cpu, the device of leaf 0, got meta;"
    )


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [("state", "state", True), ("state", "f", True), ("f", "state", True), ("f", "f", False)],
)
def test_leaves_that_share_memory(first: str, second: str, refused: bool) -> None:
    """One leaf's tensor in another leaf's: refused where either is written."""
    arguments = good_arguments("update_.list", f=torch.float32, cast=torch.float32)
    arguments[second][2] = arguments[first][0].view(5, 7)
    if not refused:
        assert_each_is_as_alone("update_.list", arguments, "cpu")
        return
    message = message_of("update_.list", arguments, ValueError)
    assert message == (
        f"update_: leaf 2: {second}: expected memory of its own, got memory that overlaps "
        f"{first} of leaf 0; pass {second}.clone() or another buffer"
    )
    assert_compiled_op_refuses("update_.list", arguments, message)


def test_leaves_that_require_grad_are_refused() -> None:
    arguments = good_arguments("update_.list")
    arguments["f"][2].requires_grad_()
    for namespace in (None, "revdeq"):
        with pytest.raises(RuntimeError, match="requires grad"):
            call("update_.list", arguments, namespace)
