"""Memory layouts and sizes: every op returns the reference's bits for every supported argument."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import revdeq_kernels as rk
from revdeq_kernels.core.memory import memory_order
from tests.conftest import BACKENDS
from tests.ops.arguments import (
    EXACT_OPS,
    OPS,
    STEPS,
    assert_same_outcome,
    bits,
    call,
    copies,
    expected,
    good_arguments,
    outcome,
    tensors,
)

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_op = pytest.mark.parametrize("op", OPS)

DENSE: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "permuted": lambda t: t.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
}
OTHER = DENSE | {
    "contiguous": torch.Tensor.contiguous,
    "with gaps": lambda t: t.repeat_interleave(2, dim=3)[..., ::2],
    "expanded": lambda t: t[:, :, :1].expand_as(t),
    "one number": lambda t: t[0, 0, 0, 0].expand_as(t),
}
SHAPE = (2, 3, 5, 7)


def laid_out(arguments: dict[str, Any], names: set[str], layout: Callable) -> dict[str, Any]:
    return {name: layout(a) if name in names else a for name, a in arguments.items()}


def assert_op_gives(want: dict[str, Tensor], op: str, arguments: dict[str, Any], at: str) -> None:
    with rk.backend(at):
        result = call(op, arguments)
    assert_same_outcome(outcome(arguments, result), want, (op, at))


@every_backend
@pytest.mark.parametrize("layout", DENSE)
@every_op
def test_dense_layouts_are_as_good_as_contiguous_ones(op: str, layout: str, backend: str) -> None:
    """The values are those of contiguous tensors, digits apart; the strides stay as they were."""
    plain = good_arguments(op, SHAPE)
    arguments = laid_out(plain, {"state", "z", "y", "f", "cast", "x", "vjp"}, DENSE[layout])
    strides = {name: t.stride() for name, t in tensors(arguments).items()}
    in_order_of_memory = "exact" in op or op == "residual"
    want = expected(op, arguments if in_order_of_memory else plain)
    assert_op_gives(want, op, arguments, backend)
    assert {name: t.stride() for name, t in tensors(arguments).items()} == strides


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("op", EXACT_OPS)
def test_digits_come_in_the_order_of_memory(op: str, layout: str) -> None:
    """So a tensor and its transpose, the same memory, have the same digits."""
    arguments = laid_out(good_arguments(op, SHAPE), {"state", "f", "cast"}, DENSE[layout])
    want = expected(op, laid_out(arguments, {"state", "f", "cast"}, memory_order))
    for name, got in expected(op, arguments).items():
        assert torch.equal(bits(memory_order(got)), bits(want[name])), name


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
@pytest.mark.parametrize("layout", DENSE)
def test_dense_layouts_need_no_copy_of_f(layout: str, backend: str) -> None:
    """Only an f laid out in another way than the state is copied first."""
    plain = good_arguments("update_", SHAPE)
    dense = laid_out(plain, {"state", "f", "cast"}, DENSE[layout])
    copied = count_copies(plain, backend)
    assert count_copies(dense, backend) == copied
    assert count_copies(dense | {"f": plain["f"]}, backend) == copied + 1


def count_copies(arguments: dict[str, Any], backend: str) -> int:
    with rk.backend(backend), torch.profiler.profile() as profile:
        call("update_", arguments)
    return sum(event.count for event in profile.key_averages() if event.key == "aten::copy_")


@every_backend
@pytest.mark.parametrize("layout", OTHER)
@pytest.mark.parametrize("state_layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("op", STEPS)
def test_f_of_any_strides(op: str, state_layout: str, layout: str, backend: str) -> None:
    arguments = laid_out(good_arguments(op, SHAPE), {"state", "cast"}, OTHER[state_layout])
    arguments = laid_out(arguments, {"f"}, OTHER[layout])
    like_state = torch.empty_like(arguments["state"], dtype=arguments["f"].dtype)
    want = expected(op, arguments | {"f": like_state.copy_(arguments["f"])})
    seen = bits(arguments["f"])
    assert_op_gives(want | {"f": arguments["f"].clone()}, op, arguments, backend)
    assert torch.equal(bits(arguments["f"]), seen)


@every_backend
@pytest.mark.parametrize("layout", OTHER)
@pytest.mark.parametrize("op", ["quantize", "dequantize"])
def test_conversions_of_any_strides(op: str, layout: str, backend: str) -> None:
    name = "x" if op == "quantize" else "state"
    arguments = laid_out(good_arguments(op, SHAPE), {name}, OTHER[layout])
    want = expected(op, {n: a.contiguous() if n == name else a for n, a in arguments.items()})
    assert_op_gives(want, op, arguments, backend)
    if layout in DENSE:
        with rk.backend(backend):
            assert call(op, arguments).stride() == arguments[name].stride()


@every_backend
@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (3, 0, 2), (1, 1, 1), (1, 6, 1), (31,), (33,), (257,), (2, 1025)]
)
@every_op
def test_sizes(op: str, shape: tuple[int, ...], backend: str) -> None:
    for optional in (True, False):
        arguments = good_arguments(op, shape, optional=optional)
        assert_op_gives(expected(op, arguments), op, arguments, backend)


@every_backend
@pytest.mark.parametrize("op", STEPS)
def test_strides_of_dimensions_of_size_1_do_not_matter(op: str, backend: str) -> None:
    arguments = good_arguments(op, (4, 1, 3))
    want = expected(op, arguments)
    arguments["state"] = arguments["state"].as_strided((4, 1, 3), (3, 77, 1))
    arguments["cast"] = arguments["cast"].as_strided((4, 1, 3), (3, 1, 1))
    assert_op_gives(want, op, arguments, backend)


@every_backend
@pytest.mark.parametrize("op", EXACT_OPS)
def test_a_larger_digit_buffer_keeps_its_rest(op: str, backend: str) -> None:
    arguments = good_arguments(op)
    used = arguments["digits"].numel()
    arguments["digits"] = torch.cat([arguments["digits"], torch.full((50,), 0xA5).byte()])
    want = expected(op, arguments)
    assert torch.equal(want["digits"][used:], torch.full((50,), 0xA5).byte())
    assert_op_gives(want, op, arguments, backend)


# ---- threads ---------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [None, "reference"])
@every_op
def test_eight_threads_at_once(op: str, choice: str | None) -> None:
    """Each on tensors of its own; the larger ones are shared among torch's threads as well."""
    jobs = [good_arguments(op, (1 + 999 * i * i,), optional=bool(i % 2)) for i in range(8)]
    wanted = [expected(op, job) for job in jobs]
    start = threading.Barrier(len(jobs))

    def work(arguments: dict[str, Any], want: dict[str, Tensor]) -> None:
        start.wait(timeout=60)
        for _ in range(3):
            mine = copies(arguments)
            assert_same_outcome(outcome(mine, call(op, mine)), want, op)

    backend = rk.backend(choice) if choice else nullcontext()
    with backend, ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(work, jobs, wanted))  # raises what a thread raised
