"""update_ and invert_ with a tensor of betas: one for all elements, or one per channel."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import revdeq_kernels as rk
from tests.conftest import BACKENDS, FLOAT_PAIRS, random_state
from tests.ops.arguments import (
    CHANNEL_PLACES,
    FLOAT_OPS,
    NAMESPACES,
    Memory,
    assert_same_outcome,
    call,
    channel_arguments,
    good_arguments,
    outcome,
)
from tests.ops.device_checks import any_bits, check
from tests.tolerances import round_trip_error

KERNELS = [name for name in BACKENDS if name != "reference"]
F32, F64 = torch.float32, torch.float64


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(("shape", "beta"), CHANNEL_PLACES, ids=str)
@pytest.mark.parametrize("op", FLOAT_OPS)
def test_every_place_of_the_channels(
    op: str, shape: tuple[int, ...], beta: tuple[int, ...], backend: str
) -> None:
    arguments = channel_arguments(op, shape, beta)
    check(op, arguments, "cpu", backend)
    if len(shape) == 4:
        last = {
            name: t.contiguous(memory_format=torch.channels_last)
            for name, t in arguments.items()
            if name in ("state", "f", "cast")
        }
        check(op, arguments | last, "cpu", backend)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(("state", "f"), FLOAT_PAIRS, ids=str)
@pytest.mark.parametrize("op", FLOAT_OPS)
def test_types(op: str, state: torch.dtype, f: torch.dtype, backend: str) -> None:
    for shape, beta in (((41, 29), (29,)), ((41, 29), (41, 1)), ((41, 29), ())):
        arguments = channel_arguments(op, shape, beta, state=state, f=f, cast=f)
        check(op, any_bits(arguments), "cpu", backend)


@given(
    before=st.integers(1, 5),
    channels=st.integers(1, 40),
    after=st.integers(1, 70),
    offset=st.integers(0, 3),
)
def test_any_shape(before: int, channels: int, after: int, offset: int) -> None:
    shape = (before, channels, after)
    for op in FLOAT_OPS:
        check(op, channel_arguments(op, shape, (channels, 1)), "cpu", "cpu", offset=offset)


def test_a_tensor_is_the_number_in_every_channel() -> None:
    """beta 0.75, where 1 - beta is the same in any precision."""
    for op in FLOAT_OPS:
        one = good_arguments(op, (40, 30), beta=0.75)
        for beta in (torch.tensor(0.75), torch.full((30,), 0.75), torch.full((40, 1), 0.75)):
            many = good_arguments(op, (40, 30)) | {"beta": beta}
            call(op, many)
            single = {n: a.clone() if isinstance(a, torch.Tensor) else a for n, a in one.items()}
            call(op, single)
            del many["beta"], single["beta"]
            assert_same_outcome(outcome(many, None), outcome(single, None), op)


def test_betas_with_strides() -> None:
    wide = torch.rand(30, 3)
    for beta in (wide[:, 1], torch.rand(1).expand(30)):
        for backend in BACKENDS:
            y, f = random_state((40, 30), F32), random_state((40, 30), F32, seed=1)
            want = y.clone() * (1 - beta) + beta * f
            with rk.backend(backend):
                assert torch.equal(rk.update_(y, f, beta), want)


def test_the_inverse_comes_back_within_rounding() -> None:
    y, f = random_state((40, 30), F64), random_state((40, 30), F64, seed=1)
    beta = torch.linspace(0.1, 0.9, 30, dtype=F64)
    back = rk.invert_(rk.update_(y.clone(), f, beta), f, beta)
    magnitude = float(torch.maximum(y.abs(), f.abs()).max())
    for k, of_channel in enumerate(beta.tolist()):
        bound = round_trip_error(F64, of_channel, 1, magnitude)
        assert (back - y)[:, k].abs().max() <= bound


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_work_without_changing_it(threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for shape, beta in (((1000, 301), (301,)), ((300, 1001), (300, 1))):
            check("update_", channel_arguments("update_", shape, beta), "cpu", "cpu")
    finally:
        torch.set_num_threads(before)


# ---- what is refused -------------------------------------------------------------------------

BAD = [
    (torch.rand(6), ValueError, "one element, or one per index of one dimension of state"),
    (torch.rand(5, 7), ValueError, "one element, or one per index of one dimension"),
    (torch.rand(5), ValueError, "one element, or one per index of one dimension"),
    (torch.rand(0), ValueError, "one element, or one per index of one dimension"),
    (torch.rand(1, 1, 7), ValueError, "one element, or one per index of one dimension"),
    (torch.rand(7, dtype=F64), TypeError, "torch.float32 for a state of torch.float32"),
    (torch.rand(7).bfloat16(), TypeError, "torch.float32 for a state of torch.float32"),
    (torch.ones(7, dtype=torch.int64), TypeError, "torch.float32 for a state of torch.float32"),
    (torch.rand(7, device="meta"), ValueError, "cpu, the device of state"),
    (torch.rand(7).to_sparse(), TypeError, "a strided tensor"),
]


def described(value: object) -> str:
    """In the names of tests, which are the same in every process that collects them."""
    if isinstance(value, torch.Tensor):
        return f"{list(value.shape)} {value.dtype} {value.layout} {value.device}"
    return str(value)


@pytest.mark.parametrize(("beta", "kind", "expected"), BAD, ids=described)
@pytest.mark.parametrize("op", FLOAT_OPS)
def test_bad_betas_are_refused(
    op: str, beta: torch.Tensor, kind: type[Exception], expected: str
) -> None:
    arguments = good_arguments(op) | {"beta": beta}
    memory = Memory({n: a for n, a in arguments.items() if n != "beta"})
    messages = set()
    for backend in BACKENDS:
        with rk.backend(backend), pytest.raises(kind) as caught:
            call(op, arguments)
        messages.add(str(caught.value))
    assert len(messages) == 1
    assert re.match(rf"{op}: beta: expected {re.escape(expected)}", messages.pop())
    memory.assert_untouched()


def test_a_beta_that_overlaps_the_state_is_refused() -> None:
    state = torch.rand(5, 7)
    for backend in BACKENDS:
        with rk.backend(backend), pytest.raises(ValueError, match="beta: expected memory of its"):
            rk.update_(state, torch.rand(5, 7), state[0])


def test_a_beta_that_requires_grad_is_refused() -> None:
    beta = torch.rand(7, requires_grad=True)
    for backend in BACKENDS:
        with rk.backend(backend), pytest.raises(RuntimeError, match="an argument requires grad"):
            rk.update_(torch.rand(5, 7), torch.rand(5, 7), beta)


def test_lists_take_a_number() -> None:
    arguments = good_arguments("update_.list") | {"beta": torch.tensor(0.5)}
    for backend in BACKENDS:
        with rk.backend(backend), pytest.raises(TypeError, match="beta: expected a Python number"):
            rk.update_(**arguments)


@pytest.mark.parametrize("namespace", sorted({NAMESPACES[name] for name in BACKENDS}))
@pytest.mark.parametrize("op", FLOAT_OPS)
def test_torch_ops_take_no_tensor_for_a_number(op: str, namespace: str) -> None:
    """A tensor without dimensions is a beta as any other: a number would lose its gradient."""
    arguments = good_arguments(op, (5,)) | {"beta": torch.tensor(0.5, requires_grad=True)}
    with pytest.raises(RuntimeError, match=f"{op}: an argument requires grad"):
        call(op, arguments, namespace)
    arguments["beta"] = torch.tensor(3.0)  # as a number it would be refused
    call(op, arguments, namespace)
