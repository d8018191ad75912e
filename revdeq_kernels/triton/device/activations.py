"""The activations of the equilibrium cell and their slopes, in float32."""

# Pyright reports every call of a jitted function and every field of a constexpr as an error.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from .half_step import compiled_for_nvidia

TANH: tl.constexpr = tl.constexpr(0)
RELU: tl.constexpr = tl.constexpr(1)
GELU: tl.constexpr = tl.constexpr(2)
SILU: tl.constexpr = tl.constexpr(3)

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
DENSITY: tl.constexpr = tl.constexpr(0.3989422804014327)


@triton.jit
def inside_act(x, CELL: tl.constexpr):
    """The expensive part that act and its slope share."""
    if CELL.act == TANH:
        e = reciprocal(1.0 + exp2(tl.abs(x) * (2.0 * LOG2_E)))
    elif CELL.act == GELU:
        e = normal_cdf(x)
    elif CELL.act == SILU:
        e = reciprocal(1.0 + exp2(x * -LOG2_E))
    else:
        e = x
    return e


@triton.jit
def activation(x, e, CELL: tl.constexpr):
    """act(x) in float32, where e = inside_act(x)."""
    if CELL.act == TANH:
        magnitude = tl.fma(e, -2.0, 1.0)  # 2 e is exact: the bits of a product and a difference
        f = tl.where(x < 0, -magnitude, magnitude)
    elif CELL.act == RELU:
        f = tl.where(x <= 0, 0.0, x)  # NaN stays
    else:
        f = x * e
    return f


@triton.jit
def times_slope(grad, x, e, f, CELL: tl.constexpr):
    """grad act'(x), where f = act(x) and e = inside_act(x)."""
    if CELL.act == TANH:
        g = grad * (1.0 - f * f)
    elif CELL.act == RELU:
        g = tl.where(f > 0, grad, f)  # f is 0, or NaN, which stays
    elif CELL.act == GELU:
        density = exp2(x * x * (-0.5 * LOG2_E)) * DENSITY
        g = grad * (e + x * density)
    else:
        g = grad * (e + f * (1.0 - e))
    return g


@triton.jit
def normal_cdf(x):
    """The cumulative distribution function of the normal distribution.

    For x < 0 it is 2^p(|x|), where p(0) = -1 and p is the polynomial of degree 8 with the least
    maximum error of gelu in [0, 6], 2^-26 (beyond 6, p keeps decreasing). Takes half the
    instructions of Triton's tl.erf, which selects each coefficient from two.
    """
    a = tl.abs(x)
    p = tl.fma(a, -2.3349485559401087e-06, 3.3737810775871746e-05)
    p = tl.fma(a, p, -1.6129380785158244e-04)
    p = tl.fma(a, p, -1.9170361226683344e-04)
    p = tl.fma(a, p, 7.1268652422278700e-03)
    p = tl.fma(a, p, -5.2533613205292880e-02)
    p = tl.fma(a, p, -4.5919828152850350e-01)
    p = tl.fma(a, p, -1.1511060419167450e00)
    tail = exp2(tl.fma(a, p, -1.0))
    return tl.where(x < 0, tail, 1.0 - tail)


@triton.jit
def exp2(x):
    """2^x; compiled for NVIDIA, results below 2^-126 are 0.

    A single instruction (PTX ISA, ex2.approx.ftz: relative error at most 2^-22.5). Triton's exp2
    takes three more instructions, to support subnormal results.
    """
    if compiled_for_nvidia():
        y = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        y = tl.exp2(x)
    return y


@triton.jit
def reciprocal(x):
    """1 / x for x >= 1; compiled for NVIDIA, it is 0 for x > 2^126.

    A single instruction (PTX ISA, rcp.approx.ftz: error at most 1 ulp). A division (div.full) takes
    seven more instructions, to support divisors that are subnormal or beyond 2^126.
    """
    if compiled_for_nvidia():
        y = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        y = 1.0 / x
    return y
