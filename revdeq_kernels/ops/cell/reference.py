"""The equilibrium cell by matmuls and the half-step ops: the definition of ``linear_cell.py``.

    f(s) = act(W s + u)           y <- (1-b) y + b f(z)     z <- (1-b) z + b f(y)

Before each product, s is rounded to the dtype of W; in the backward pass, so is g, the adjoint of
W s + u. Products of 16-bit numbers are exact in float32, in which they are accumulated. This is
what a tensor core computes, up to the order of summation. f itself stays in float32.

It runs on every device that the half-step ops support, with a matmul and one or two launches per
half step. The arguments are already checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.checks import F32
from ...dtypes import EPSILON, TOLERANCE
from ...exact_numbers import LEFT_RANGE, digit_bytes, effective_beta
from ..conversion import dequantize, quantize
from ..exact_step import update_exact_
from ..half_step import update_
from ..passes import (
    invert_y_adjoint_z0_,
    invert_y_adjoint_z0_exact_,
    invert_y_adjoint_z_,
    invert_y_adjoint_z_exact_,
    invert_z_adjoint_y_,
    invert_z_adjoint_y_exact_,
)
from .arguments import Ends, Gradients, Inputs, Numbers, Solved

aten = torch.ops.aten

ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "tanh": (torch.tanh, lambda grad, x, f: aten.tanh_backward(grad, f)),
    "relu": (torch.relu, lambda grad, x, f: torch.where(f > 0, grad, f)),
    "gelu": (F.gelu, lambda grad, x, f: aten.gelu_backward(grad, x)),
    "silu": (F.silu, lambda grad, x, f: aten.silu_backward(grad, x)),
    "gelu_tanh": (
        partial(F.gelu, approximate="tanh"),
        lambda grad, x, f: aten.gelu_backward(grad, x, approximate="tanh"),
    ),
}
"""act(x), and the gradient of x from the gradient of f = act(x), as autograd computes it. Unlike in
autograd's relu, the gradient is NaN where x is NaN."""

OVERFLOW = 2.0**64
"""Norms of at least this have squares beyond float32, in which kernels accumulate them."""


def digits_shape(z0: Tensor, numbers: Numbers) -> tuple[int, ...]:
    """One plane of ``digit_bytes`` per half step, y before z."""
    return 2 * numbers.steps, digit_bytes(z0.numel(), numbers.beta)


def forward(inputs: Inputs, numbers: Numbers) -> Solved:
    """See ``linear_cell.linear_cell_forward``."""
    z0, f = inputs.z0, _Map(inputs, numbers.act)
    flag = torch.zeros(1, dtype=torch.int32, device=z0.device)
    pair: _Pair
    if numbers.exact:
        fixed = quantize(z0, numbers.frac_bits, flag=flag)
        new = z0.new_zeros if numbers.halting else z0.new_empty  # some rows may not be written
        digits = new(digits_shape(z0, numbers), dtype=torch.uint8)
        pair = _ExactPair(fixed.clone(), fixed, numbers, digits, flag)
    else:
        digits = z0.new_empty(0, dtype=torch.uint8)
        pair = _FloatPair(z0.clone(), z0.clone(), numbers.beta)
    rows = _Rows(z0, numbers)
    for n in range(numbers.steps):
        if rows.all_halted():
            break
        with _only(rows.moving, pair.y, pair.read_y):
            pair.update(2 * n, pair.y, f(pair.read_z), pair.read_y)
        value = f(pair.read_y)
        with _only(rows.moving, pair.z, pair.read_z):
            rows.judge(pair.read_y, value)
            pair.update(2 * n + 1, pair.z, value, pair.read_z)
    if not numbers.exact:
        fixed = z0.new_empty(0, dtype=torch.int32)
        return Solved(pair.y, pair.z, fixed, digits, flag, rows.taken, rows.residual)
    y, z = (read.masked_fill_(flag != 0, float("nan")) for read in (pair.read_y, pair.read_z))
    fixed = torch.stack([pair.y, pair.z]).masked_fill_(flag != 0, LEFT_RANGE)
    return Solved(y, z, fixed, digits, flag, rows.taken, rows.residual)


def backward(ends: Ends, inputs: Inputs, numbers: Numbers) -> Gradients:
    """See ``linear_cell.linear_cell_backward``."""
    grad_y, grad_z, y, z, digits, taken = ends
    z0, applied = inputs.z0, numbers.beta
    pair: _Pair = _FloatPair(y.clone(), z.clone(), numbers.beta)
    if numbers.exact:
        applied = effective_beta(numbers.beta)
        flag = torch.zeros(1, dtype=torch.int32, device=z0.device)
        pair = _ExactPair(y.clone(), z.clone(), numbers, digits, flag)
    f = _Products(inputs, numbers.act)
    grad_y, grad_z = grad_y.clone(), grad_z.clone()
    seed = grad_z * applied
    states = (pair.y, pair.z, pair.read_y, pair.read_z)
    for n in reversed(range(_most(taken, numbers))):
        moving = (taken > n).unsqueeze(1) if numbers.halting else None
        with _only(moving, *states, grad_y, grad_z, seed):
            value, vjp = f.products(pair.read_y, _where_moving(moving, seed))
            pair.back_z(2 * n + 1, value, grad_y, vjp, seed)
            # Use z0 itself, which a float pair only reconstructs approximately.
            s = pair.read_z if n > 0 or numbers.exact else z0
            value, vjp = f.products(s, _where_moving(moving, seed))
            if n > 0:
                pair.back_y(2 * n, value, grad_z, vjp, seed)
            else:
                pair.back_to_start(value, grad_z, grad_y, vjp)
    distance, lost = _distance(pair, z0, (y, z), numbers)
    nan = float("nan")
    grad_u = f.grad_u.masked_fill_(lost, nan).to(inputs.u.dtype)
    grad_w = f.grad_w.masked_fill_(lost.any(), nan)
    count = lost.sum(dtype=torch.int32).reshape(1)
    return Gradients(grad_u, grad_w, grad_z.masked_fill_(lost, nan), distance, count)


def _distance(
    pair: _Pair, z0: Tensor, ends: tuple[Tensor, Tensor], numbers: Numbers
) -> tuple[Tensor, Tensor]:
    """The largest distance of the pair from z0, and a mask [rows, 1] of rows that are too far.

    Rows that are not finite, or that left the range of an exact state, are infinitely far.
    """
    if z0.numel() == 0:
        return z0.new_zeros(1), z0.new_zeros(z0.shape[0], 1, dtype=torch.bool)
    start = quantize(z0, numbers.frac_bits).long() if numbers.exact else z0
    apart = torch.maximum((pair.y - start).abs(), (pair.z - start).abs()).amax(1, keepdim=True)
    if numbers.exact:
        apart = apart.to(F32) * 2.0**-numbers.frac_bits
        apart.masked_fill_(torch.stack(ends).amin((0, 2)).unsqueeze(1) == LEFT_RANGE, math.inf)
        return apart.max().reshape(1), apart != 0
    apart = apart.nan_to_num(nan=math.inf, posinf=math.inf)
    size = torch.stack([z0, *ends]).abs().amax((0, 2)).unsqueeze(1)
    return apart.max().reshape(1), (apart == math.inf) | ~(apart <= TOLERANCE["float32"] * size)


# ---- rows that halt --------------------------------------------------------------------------


class _Rows:
    """Which rows still move, and the last residual of each row."""

    def __init__(self, z0: Tensor, numbers: Numbers) -> None:
        self.tol = numbers.tol
        rows = z0.shape[0] if numbers.halting else 0
        self.taken, self.residual = z0.new_zeros(rows, dtype=torch.int32), z0.new_zeros(rows)
        still = z0.new_ones(rows, 1, dtype=torch.bool)
        self.moving = still if numbers.halting else None

    def all_halted(self) -> bool:
        """Whether all rows have halted; False if the host would have to wait for the answer."""
        return self.moving is not None and not self.moving.is_cuda and not bool(self.moving.any())

    def judge(self, y: Tensor, f: Tensor) -> None:
        """Halt rows with a residual below tol, not NaN. Halted rows keep their residual."""
        if self.moving is None:
            return
        norm = partial(torch.linalg.vector_norm, dim=1, keepdim=True, dtype=torch.float64)
        distance, size = norm(y - f), norm(f)
        residual = (distance / (EPSILON + size)).float()
        residual.masked_fill_(distance >= OVERFLOW, math.inf)
        residual.masked_fill_(size >= OVERFLOW, math.nan)
        self.taken += self.moving.squeeze(1)
        self.residual = torch.where(self.moving, residual, self.residual.unsqueeze(1)).squeeze(1)
        self.moving = self.moving & ~(residual < self.tol)


def _most(taken: Tensor, numbers: Numbers) -> int:
    """The largest number of steps of a row, or an upper bound if the host would have to wait."""
    if not numbers.halting or taken.is_cuda or taken.numel() == 0:
        return numbers.steps
    return min(int(taken.max()), numbers.steps)


@contextmanager
def _only(moving: Tensor | None, *tensors: Tensor) -> Iterator[None]:
    """Restrict in-place changes inside the block to the rows that move; None: all rows."""
    if moving is None:
        yield
        return
    before = [t.clone() for t in tensors]
    yield
    for t, kept in zip(tensors, before, strict=True):
        t.copy_(torch.where(moving, t, kept))


def _where_moving(moving: Tensor | None, seed: Tensor) -> Tensor:
    """The seed of a product, zero for rows that do not move."""
    return seed if moving is None else seed.masked_fill(~moving, 0.0)


# ---- f ---------------------------------------------------------------------------------------


class _Map:
    """f, evaluated at float32 states."""

    def __init__(self, inputs: Inputs, act: str) -> None:
        self.dtype, self.w, self.u = inputs.w.dtype, inputs.w.float(), inputs.u.float()
        self.act, self.act_backward = ACTIVATIONS[act]

    def __call__(self, s: Tensor) -> Tensor:
        return self.act(self.before_act(s))

    def before_act(self, s: Tensor) -> Tensor:
        return F.linear(self.operand(s), self.w) + self.u

    def operand(self, x: Tensor) -> Tensor:
        """A factor of a product: rounded to W's dtype."""
        return x.to(self.dtype).float()


class _Products(_Map):
    """f and its vector-Jacobian products; accumulates the gradients of u and W."""

    def __init__(self, inputs: Inputs, act: str) -> None:
        super().__init__(inputs, act)
        self.grad_u, self.grad_w = torch.zeros_like(self.u), torch.zeros_like(self.w)

    def products(self, s: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        """f(s), and the product of `seed` with its Jacobian at s."""
        x = self.before_act(s)
        f = self.act(x)
        grad = self.act_backward(seed, x, f)
        self.grad_u += grad
        grad = self.operand(grad)
        self.grad_w += grad.t() @ self.operand(s)
        return f, grad @ self.w


# ---- the pair --------------------------------------------------------------------------------


class _FloatPair:
    """A float32 pair, which f reads directly. `k` is the index of the half step."""

    def __init__(self, y: Tensor, z: Tensor, beta: float) -> None:
        self.y, self.z, self.beta = y, z, beta
        self.read_y, self.read_z = y, z

    def update(self, k: int, state: Tensor, f: Tensor, read: Tensor) -> None:
        update_(state, f, self.beta)

    def back_z(self, k: int, f: Tensor, grad_y: Tensor, vjp: Tensor, seed: Tensor) -> None:
        invert_z_adjoint_y_(self.z, f, self.beta, grad_y, vjp, seed)

    def back_y(self, k: int, f: Tensor, grad_z: Tensor, vjp: Tensor, seed: Tensor) -> None:
        invert_y_adjoint_z_(self.y, f, self.beta, grad_z, vjp, self.beta, seed)

    def back_to_start(self, f: Tensor, grad_z: Tensor, grad_y: Tensor, vjp: Tensor) -> None:
        invert_y_adjoint_z0_(self.y, f, self.beta, grad_z, grad_y, vjp)


class _ExactPair:
    """A fixed-point pair; the ops write the float32 values that f reads."""

    def __init__(
        self, y: Tensor, z: Tensor, numbers: Numbers, digits: Tensor, flag: Tensor
    ) -> None:
        self.y, self.z, self.beta, self.frac_bits = y, z, numbers.beta, numbers.frac_bits
        self.digits, self.flag = digits, flag
        self.read_y, self.read_z = (dequantize(t, self.frac_bits) for t in (y, z))

    def update(self, k: int, state: Tensor, f: Tensor, read: Tensor) -> None:
        step = (self.beta, self.frac_bits, tie(k))
        update_exact_(state, self.digits[k], self.flag, f, *step, cast=read)

    def back_z(self, k: int, f: Tensor, grad_y: Tensor, vjp: Tensor, seed: Tensor) -> None:
        step = (self.beta, self.frac_bits, tie(k))
        carried = (grad_y, vjp, seed)
        invert_z_adjoint_y_exact_(self.z, self.digits[k], f, *step, *carried, cast=self.read_z)

    def back_y(self, k: int, f: Tensor, grad_z: Tensor, vjp: Tensor, seed: Tensor) -> None:
        step = (self.beta, self.frac_bits, tie(k))
        carried = (grad_z, vjp, self.beta, seed)
        invert_y_adjoint_z_exact_(self.y, self.digits[k], f, *step, *carried, cast=self.read_y)

    def back_to_start(self, f: Tensor, grad_z: Tensor, grad_y: Tensor, vjp: Tensor) -> None:
        step = (self.beta, self.frac_bits, tie(0))
        invert_y_adjoint_z0_exact_(self.y, self.digits[0], f, *step, grad_z, grad_y, vjp)


def tie(k: int) -> int:
    """How half step k breaks ties: n mod 2 for y, (n + 1) mod 2 for z, to avoid a bias."""
    return (k // 2 + k % 2) % 2


_Pair = _FloatPair | _ExactPair
