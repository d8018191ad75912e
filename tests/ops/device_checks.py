"""Checks that every backend must pass on its device, as functions of (device, backend).

test_devices.py runs them on the CPU and on a GPU; test_device_checks.py plants faults that they
must detect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import revdeq_kernels as rk
from tests.conftest import BETAS
from tests.ops.arguments import (
    assert_same_outcome,
    call,
    expected,
    good_arguments,
    outcome,
    tensors,
    with_tensors,
)

GPU = "cuda:0"
GPU_BACKENDS = ["cuda", "triton"] if torch.version.hip is None else ["triton"]

on_gpus = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
    pytest.mark.filterwarnings("default"),  # a GPU machine has its own version of torch
]

TAILS = (33, 257)
"""Sizes that end within a vector and within a block of digits."""

FORM_BETAS = [*BETAS, 1 - 1 / 8, 1 - 1 / 20, 1 - 1 / 5.5, 1 - 1 / 9.5, 1 - 1 / 30.5]
"""One beta per kernel of the exact step: each form with each number of digits per byte."""

NUMBERS = ("state", "f", "x", "y", "z", "grad", "grad_y", "grad_z", "vjp")
"""The arguments whose elements can be arbitrary numbers."""

GUARD = 8
CANARY = 77


def place(t: Tensor, device: str, offset: int = 0, guard: int = GUARD) -> Tensor:
    """A tensor moved to the device, `offset` elements into memory filled with CANARY."""
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    size = offset + (last + 1 if t.numel() else 0) + guard
    buffer = torch.full((size,), CANARY, dtype=t.dtype, device=device)
    return buffer.as_strided(t.shape, t.stride(), offset).copy_(t)


def placed(
    arguments: dict[str, Any], device: str, offset: int = 0, guard: int = GUARD
) -> dict[str, Any]:
    """The arguments with all tensors on the device."""
    return with_tensors(arguments, lambda _, t: place(t, device, offset, guard))


def assert_nothing_around_was_written(arguments: dict[str, Any]) -> None:
    """Raise AssertionError if a canary of `place` was overwritten."""
    for name, t in tensors(arguments).items():
        buffer, start = t._base, t.storage_offset()
        assert buffer is not None, name
        around = torch.ones(buffer.shape, dtype=torch.bool, device=buffer.device)
        around.as_strided(t.shape, t.stride(), start).fill_(False)
        assert (buffer[around] == CANARY).all(), f"memory beside {name} was written"


def check(
    op: str,
    arguments: dict[str, Any],
    device: str,
    backend: str,
    *,
    offset: int = 0,
    guard: int = GUARD,
) -> None:
    """Raise AssertionError unless the op returns the reference's bits and writes nothing else.

    With `guard` 0, each allocation ends with its tensor, for a tool that checks its bounds.
    """
    want = expected(op, arguments)
    mine = placed(arguments, device, offset, guard)
    with rk.backend(backend):
        result = call(op, mine)
    sizes = {name: tuple(t.shape) for name, t in tensors(arguments).items()}
    label = (op, backend, sizes, offset, arguments.get("beta"))
    assert_same_outcome(outcome(mine, result), want, label)
    assert_nothing_around_was_written(mine)


def any_bits(arguments: dict[str, Any], seed: int = 7) -> dict[str, Any]:
    """The arguments with all kinds of bit patterns: subnormals, infinities, NaN."""
    generator = torch.Generator().manual_seed(seed)

    def pattern(name: str, t: Tensor) -> Tensor:
        if name not in NUMBERS:
            return t
        size = t.numel() * t.element_size()
        patterns = torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8)
        patterns[: t.element_size()] = 255  # a NaN that overflows if it is rounded as a number
        return patterns.view(t.dtype).view(t.shape)

    return with_tensors(arguments, pattern)


def check_layouts(op: str, device: str, backend: str) -> None:
    """channels_last throughout, then with an f of another layout, which costs a copy."""
    plain = good_arguments(op, (2, 3, 5, 7))
    last = with_tensors(
        plain, lambda _, t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
    )
    check(op, last, device, backend)
    if "f" in plain:
        want = expected(op, last)
        mixed = placed(last | {"f": plain["f"]}, device)
        with rk.backend(backend):
            result = call(op, mixed)
        assert_same_outcome(outcome(mixed, result), want, (op, backend, "f of another layout"))


# ---- exact steps -----------------------------------------------------------------------------


def check_round_trip(
    beta: float, f_dtype: torch.dtype, device: str, backend: str, depth: int
) -> None:
    """Steps of the pair update and their inverses reconstruct both states bit for bit."""
    shape = (1003,)
    y, z = (place(good_arguments("dequantize", shape)["state"], device) for _ in range(2))
    z.neg_()
    began = y.clone(), z.clone()
    flag = torch.zeros(1, dtype=torch.int32, device=device)
    size = rk.digit_bytes(y.numel(), beta)
    digits = torch.full((depth, 2, size), 255, dtype=torch.uint8, device=device)

    def f(state: Tensor) -> Tensor:
        return torch.sin(0.5 * rk.dequantize(state, 16)).to(f_dtype)

    with rk.backend(backend):
        for n in range(depth):
            rk.update_exact_(y, digits[n, 0], flag, f(z), beta, 16, n % 2)
            rk.update_exact_(z, digits[n, 1], flag, f(y), beta, 16, (n + 1) % 2)
        assert not torch.equal(y, began[0])
        for n in reversed(range(depth)):
            rk.invert_exact_(z, digits[n, 1], f(y), beta, 16, (n + 1) % 2)
            rk.invert_exact_(y, digits[n, 0], f(z), beta, 16, n % 2)
    assert torch.equal(y, began[0])
    assert torch.equal(z, began[1])
    assert flag.item() == 0


def check_flag(bad: float, device: str, backend: str) -> None:
    """One value out of range, anywhere, sets the flag; the inversion is still exact."""
    for position in (0, 500, 1002):
        arguments = good_arguments("update_exact_", (1003,), f=torch.float32, cast=torch.float32)
        arguments["f"][position] = bad
        check("update_exact_", arguments, device, backend)
        mine = placed(arguments, device)
        began = mine["state"].clone()
        back = {n: a for n, a in mine.items() if n != "flag"}
        with rk.backend(backend):
            call("update_exact_", mine)
            assert mine["flag"].item() == 1
            call("invert_exact_", back)
            assert torch.equal(mine["state"], began)
            flag = torch.tensor([6], dtype=torch.int32, device=device)
            rk.quantize(mine["f"], 16, flag=flag)
            assert flag.item() == 7


def solve(x: Tensor, weight: Tensor, digits: Tensor, flag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two steps of the pair update and their inverses, for torch.compile; four planes of digits."""
    y, z = rk.quantize(x, 16, flag=flag), rk.quantize(x * 0.5, 16)
    seen = torch.empty_like(x)
    for n in range(2):
        f = torch.sin(weight * rk.dequantize(z, 16))
        rk.update_exact_(y, digits[2 * n], flag, f, 0.8, 16, n % 2, cast=seen)
        f = torch.sin(weight * seen)
        rk.update_exact_(z, digits[2 * n + 1], flag, f, 0.8, 16, (n + 1) % 2)
    result = rk.dequantize(z, 16) + seen
    for n in reversed(range(2)):
        f = torch.sin(weight * rk.dequantize(y, 16))
        rk.invert_exact_(z, digits[2 * n + 1], f, 0.8, 16, (n + 1) % 2)
        f = torch.sin(weight * rk.dequantize(z, 16))
        rk.invert_exact_(y, digits[2 * n], f, 0.8, 16, n % 2)
    return result, y, z


def check_compiled_solve(compile_: Callable[[Any], Any], device: str, same_sine: bool) -> None:
    """A chain of in-place ops: functionalization must keep their order and separate copies."""
    x = place(torch.linspace(-3, 3, 300).view(6, 50), device)
    weight = torch.tensor(0.5, device=device)
    runs = []
    for function in (solve, compile_(solve)):
        digits = torch.zeros(4, rk.digit_bytes(x.numel(), 0.8), dtype=torch.uint8, device=device)
        flag = torch.zeros(1, dtype=torch.int32, device=device)
        runs.append((*function(x, weight, digits, flag), digits, flag))
    _, y, z, _, flag = runs[1]
    assert flag.item() == 0
    assert torch.equal(y, rk.quantize(x, 16))
    assert torch.equal(z, rk.quantize(x * 0.5, 16))
    if same_sine:
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


# ---- more than 2**31 elements ----------------------------------------------------------------


def normal(numel: int, chunk: int, device: str, seed: int = 0) -> Tensor:
    """bfloat16 numbers, filled piece by piece."""
    generator = torch.Generator(device).manual_seed(seed)
    t = torch.empty(numel, dtype=torch.bfloat16, device=device)
    for piece in t.split(chunk):
        piece.normal_(generator=generator)
    return t


def check_large_update(op: str, numel: int, chunk: int, device: str, backend: str) -> None:
    """Compare one call on all elements to calls on pieces, and the end to the reference."""
    state, f = (normal(numel, chunk, device, seed) for seed in (0, 1))
    before = state.clone()
    tail = {"state": before[-1000:].clone().cpu(), "f": f[-1000:].cpu(), "beta": 0.8}
    with rk.backend(backend):
        call(op, {"state": state, "f": f, "beta": 0.8})
        pieces = zip(state.split(chunk), before.split(chunk), f.split(chunk), strict=True)
        for whole, piece, f_piece in pieces:
            call(op, {"state": piece, "f": f_piece, "beta": 0.8})
            assert torch.equal(whole, piece)
    got = {"state": state[-1000:], "f": f[-1000:]}
    assert_same_outcome(got, expected(op, tail), (op, numel, backend))


def check_large_exact(numel: int, chunk: int, device: str, backend: str) -> None:
    """The same for quantize, the exact pair and dequantize; `chunk` is a multiple of 256."""
    x = normal(numel, chunk, device)
    beta = 0.5  # eight digits per byte
    with rk.backend(backend):
        state = rk.quantize(x, 16)
        before = state.clone()
        flag = torch.zeros(1, dtype=torch.int32, device=device)
        digits = torch.zeros(rk.digit_bytes(numel, beta), dtype=torch.uint8, device=device)
        rk.update_exact_(state, digits, flag, x, beta, 16, 1)
        back = rk.dequantize(state, 16, torch.bfloat16)
        whole = [t.split(chunk) for t in (x, before, state, back)]
        for piece, was, updated, number, plane in zip(
            *whole, digits.split(chunk // 8), strict=True
        ):
            mine = rk.quantize(piece, 16)
            assert torch.equal(mine, was)
            my_plane = torch.zeros_like(plane)
            rk.update_exact_(mine, my_plane, flag, piece, beta, 16, 1)
            assert torch.equal(mine, updated)
            assert torch.equal(my_plane, plane)
            assert torch.equal(rk.dequantize(mine, 16, torch.bfloat16), number)
        rk.invert_exact_(state, digits, x, beta, 16, 1)
    pieces = zip(state.split(chunk), before.split(chunk), strict=True)
    assert all(torch.equal(inverted, was) for inverted, was in pieces)
    assert flag.item() == 0
