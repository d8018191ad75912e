"""The ops in real arithmetic, represented by NumPy's long doubles, with tolerances for rounding.

A check takes the tensors of a call before and after it, by name, the numbers, and the result. Only
ordinary elements are compared: those that neither overflow nor leave the range.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import revdeq_kernels as rk
from revdeq_kernels import reference
from revdeq_kernels.exact_numbers import FIXED_MAX, FIXED_MIN, RANGE
from tests.tolerances import (
    adjoint_error,
    grid_error,
    invert_error,
    seed_error,
    unit_roundoff,
    update_error,
)

Tensors = dict[str, Tensor]
Check = Callable[[Tensors, Tensors, dict[str, Any], Tensor | None], None]


def real(t: Tensor) -> np.ndarray:
    """The elements, as long doubles."""
    return t.detach().double().numpy().astype(np.longdouble)


def ordinary(limit: float, *arrays: np.ndarray) -> np.ndarray:
    """Where all are smaller than the limit, and not NaN."""
    return np.logical_and.reduce([np.abs(a) < limit for a in arrays])


def largest(where: np.ndarray, *arrays: np.ndarray) -> float:
    """The largest magnitude at these places."""
    return float(max(np.max(np.abs(a), where=where, initial=0) for a in arrays))


def assert_close(got: np.ndarray, want: np.ndarray, error: float, where: np.ndarray) -> None:
    """Raise AssertionError with the first element that is off by more than the error."""
    wrong = where & ~(np.abs(got - want) <= error)
    if wrong.any():
        place = tuple(int(i[0]) for i in wrong.nonzero()) if wrong.ndim else ()
        raise AssertionError(f"at {place} got {got[place]}, expected {want[place]} +- {error}")


def half_step(
    before: Tensors, after: Tensors, beta: float, error: Callable[..., float], invert: bool
) -> None:
    """The new state, and the cast, which is the state rounded."""
    dtype, b = before["state"].dtype, np.longdouble(beta)
    y, f, new = real(before["state"]), real(before["f"]), real(after["state"])
    limit = float(torch.finfo(dtype).max) / 16 * (abs(1 - beta) if invert else 1)
    where = ordinary(limit, y, f)
    with np.errstate(all="ignore"):
        want = (y - b * f) / (1 - b) if invert else (1 - b) * y + b * f
    assert_close(new, want, error(dtype, beta, largest(where, y, f)), where)
    if "cast" in after:
        assert_rounded(after["cast"], new)


def assert_rounded(t: Tensor, want: np.ndarray, more: float = 0.0) -> None:
    """Check that `t` is `want` rounded to its dtype, with `more` relative error from before."""
    u, info = unit_roundoff(t.dtype), torch.finfo(t.dtype)
    where = ordinary(info.max / 2, want)
    assert_close(real(t), want, 1.01 * (u + more) * largest(where, want) + info.tiny, where)


def update(before: Tensors, after: Tensors, numbers: dict[str, Any], result: Tensor | None) -> None:
    half_step(before, after, float(numbers["beta"]), update_error, invert=False)


def invert(before: Tensors, after: Tensors, numbers: dict[str, Any], result: Tensor | None) -> None:
    half_step(before, after, float(numbers["beta"]), invert_error, invert=True)


def adjoint(
    before: Tensors, after: Tensors, numbers: dict[str, Any], result: Tensor | None
) -> None:
    """The new gradient, and the seed computed from the stored gradient."""
    dtype, scale, beta = before["grad"].dtype, float(numbers["scale"]), float(numbers["beta"])
    g, v, new = real(before["grad"]), real(before["vjp"]), real(after["grad"])
    limit = float(torch.finfo(dtype).max) / 16
    with np.errstate(all="ignore"):
        where = ordinary(limit, g, v, scale * g) & (abs(scale) < limit)
    error = adjoint_error(dtype, scale, largest(where, g, v))
    assert_close(new, np.longdouble(scale) * g + v, error, where)
    seed, want = after["seed"], np.longdouble(beta) * new
    where = ordinary(float(torch.finfo(seed.dtype).max) / 16, want, new) & (abs(beta) < limit)
    error = seed_error(dtype, seed.dtype, beta, largest(where, new))
    assert_close(real(seed), want, error, where)


def to_grid(x: Tensor, frac_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """x as an integer, and a mask of out-of-range values."""
    scaled = real(x) * np.longdouble(2.0) ** int(frac_bits)
    outside = ~(np.abs(scaled) < RANGE)
    return np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), FIXED_MIN, FIXED_MAX)), outside


def update_exact(
    before: Tensors, after: Tensors, numbers: dict[str, Any], result: Tensor | None
) -> None:
    """Within half a grid step of the float update; also the flag, and the inverse."""
    beta = rk.effective_beta(float(numbers["beta"]))
    f, outside = to_grid(before["f"], numbers["frac_bits"])
    y, new = real(before["state"]), real(after["state"])
    where = ~outside & ordinary(RANGE, y)
    want = (1 - np.longdouble(beta)) * y + np.longdouble(beta) * f
    where &= ordinary(RANGE, want)
    assert_close(new, want, grid_error(0) * (1 + 1e-6), where)
    raised = outside.any() or not ordinary(RANGE, new).all()
    assert int(after["flag"]) == int(before["flag"]) | int(raised)
    back = {name: after[name].clone() for name in ("state", "digits")}
    others = (before["f"], numbers["beta"], numbers["frac_bits"], numbers["tie"])
    reference.invert_exact_(back["state"], back["digits"], *others)
    assert torch.equal(back["state"], before["state"])
    assert_cast(after, numbers)


def assert_cast(after: Tensors, numbers: dict[str, Any]) -> None:
    """The cast of an exact state."""
    if "cast" in after:
        scale = np.longdouble(2.0) ** -int(numbers["frac_bits"])
        assert_rounded(after["cast"], real(after["state"]) * scale, unit_roundoff(torch.float32))


def invert_exact(
    before: Tensors, after: Tensors, numbers: dict[str, Any], result: Tensor | None
) -> None:
    """The cast; the state is covered by update_exact's check."""
    assert_cast(after, numbers)


def quantize(
    before: Tensors, after: Tensors, numbers: dict[str, Any], result: Tensor | None
) -> None:
    """The nearest integer, and the flag."""
    assert result is not None
    want, outside = to_grid(before["x"], numbers["frac_bits"])
    assert_close(real(result), want, 0.0, np.full(want.shape, True))
    if "flag" in after:
        assert int(after["flag"]) == int(before["flag"]) | int(outside.any())


def dequantize(
    before: Tensors, after: Tensors, numbers: dict[str, Any], result: Tensor | None
) -> None:
    """The value, exact in float64."""
    assert result is not None
    want = real(before["state"]) * np.longdouble(2.0) ** -int(numbers["frac_bits"])
    if result.dtype == torch.float64:
        assert_close(real(result), want, 0.0, np.full(want.shape, True))
    else:
        assert_rounded(result, want, unit_roundoff(torch.float32))


CHECKS: dict[str, Check] = {
    "update_": update,
    "invert_": invert,
    "adjoint_": adjoint,
    "update_exact_": update_exact,
    "invert_exact_": invert_exact,
    "quantize": quantize,
    "dequantize": dequantize,
}
"""The check of each op that has one."""
