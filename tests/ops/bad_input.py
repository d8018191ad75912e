"""Invalid arguments for test_errors.py: for every op, what is changed and the resulting error.

Those of the adjoint and of the passes are in bad_input_back.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from tests.ops.arguments import EXACT_OPS, FLOAT_OPS, STEPS

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
I64, I32, I8, U8 = torch.int64, torch.int32, torch.int8, torch.uint8
FIXED = (*EXACT_OPS, "quantize", "dequantize")
FLAGGED = ("update_exact_", "quantize")


class Case(NamedTuple):
    """A change of valid arguments, and the resulting error; "..." stands for any words."""

    label: str
    ops: tuple[str, ...]
    change: dict[str, Any]  # by argument: a value, or a function of the valid value
    kind: type[Exception]
    message: str


def as_type(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: t.to(dtype)


# The valid arguments: shape [5, 7], a float32 (or int32) state, bfloat16 f and cast, beta 0.8 with
# three digits per byte, 32 bytes.

BETAS = [
    Case(
        *(f"beta {beta}", STEPS, {"beta": beta}, ValueError),
        f"beta: expected a number inside (0, 2) other than 1, got {beta:g}; ...no inverse",
    )
    for beta in (0.0, 1.0, 2.0, -0.5, 2.5, math.nan, math.inf, -math.inf)
] + [
    Case(
        *(f"beta {beta}", EXACT_OPS, {"beta": beta}, ValueError),
        f"beta: expected a number {expected} for an exact step, got {got}; {remedy}, or keep ...",
    )
    for beta, expected, got, remedy in (
        (1 + 1 / 512, "at least 1/256 away from 1", "1.001953125", "choose at most 0.996 or ..."),
        (1 - 1 / 1024, "at least 1/256 away from 1", "0.9990234375", "... or at least 1.004"),
        (1 - 2.0**-52, "at least 1/256 away from 1", "1", "choose at most 0.996 or ..."),
        (1e-10, "more than 2^-30 away from 0 and 2", "1e-10", "move beta away from 0 or 2"),
        (2 - 2.0**-40, "more than 2^-30 away from 0 and 2", "2", "move beta away from 0 or 2"),
    )
]

INTEGERS = [
    Case(
        *(f"frac_bits {bits}", FIXED, {"frac_bits": bits}, ValueError),
        f"frac_bits: expected an integer from 0 to 30, got {bits}; use 20 for float32 f...",
    )
    for bits in (-1, 31, 2**40)
] + [
    Case(
        *(f"tie {tie}", EXACT_OPS, {"tie": tie}, ValueError),
        f"tie: expected 0 or 1, got {tie}; alternate it: n % 2 for y...",
    )
    for tie in (-1, 2)
]

ANY_FLOAT = "torch.float32, torch.float64, torch.bfloat16 or torch.float16"
TO_F32 = "torch.float32, torch.bfloat16 or torch.float16"
DTYPES = [
    Case(
        *(f"{name} {dtype}", ops, {name: as_type(dtype)}, TypeError),
        f"{name}: expected {expected}, got {dtype}; convert it with {name}.to(...)",
    )
    for ops, name, dtype, expected in (
        *((FLOAT_OPS, "state", dtype, ANY_FLOAT) for dtype in (I32, I64, I8, torch.complex64)),
        (FLOAT_OPS, "f", F64, f"{TO_F32} for a state of torch.float32"),
        (FLOAT_OPS, "f", torch.int16, f"{TO_F32} for a state of torch.float32"),
        (EXACT_OPS, "state", F32, "torch.int32"),
        (EXACT_OPS, "state", I64, "torch.int32"),
        (EXACT_OPS, "f", F64, f"{TO_F32} for an exact state"),
        (EXACT_OPS, "f", I32, f"{TO_F32} for an exact state"),
        (EXACT_OPS, "digits", I8, "torch.uint8"),
        (STEPS, "cast", F16, "torch.bfloat16 or torch.float32, the dtype of f or float32"),
        (STEPS, "cast", F64, "torch.bfloat16 or torch.float32, the dtype of f or float32"),
        (FLAGGED, "flag", torch.bool, "torch.int32"),
        (FLAGGED, "flag", I64, "torch.int32"),
        (("quantize",), "x", F64, TO_F32),
        (("quantize",), "x", I32, TO_F32),
        (("dequantize",), "state", U8, "torch.int32"),
    )
] + [
    Case(
        *("f wider than a half-precision state", FLOAT_OPS, {"state": as_type(F16)}, TypeError),
        "f: expected torch.float16 for a state of torch.float16, got torch.bfloat16; convert it...",
    ),
    Case(
        *("cast narrower than f", STEPS, {"f": as_type(F32)}, TypeError),
        "cast: expected torch.float32, the dtype of f, got torch.bfloat16; convert it with cast...",
    ),
    *(
        Case(
            *(f"to {dtype}", ("dequantize",), {"dtype": dtype}, TypeError),
            f"dtype: expected torch.float32, torch.float64, ..., got {dtype}; choose one of...",
        )
        for dtype in (I32, torch.complex64)
    ),
]

SHAPES = [
    Case(
        *(f"{name} {label}", STEPS, {name: change}, ValueError),
        f"{name}: expected shape [5, 7], the shape of state, got {got}; ...does not broadcast",
    )
    for name in ("f", "cast")
    for label, change, got in (
        ("transposed", torch.t, "[7, 5]"),
        ("one row", lambda t: t[0], "[7]"),
        ("flat", torch.ravel, "[35]"),
        ("empty", lambda t: t[:0], "[0, 7]"),
        ("with one dimension more", lambda t: t[..., None], "[5, 7, 1]"),
    )
]

DENSE = "a dense tensor (no gaps between elements, dimensions in any order)"
FLAT = "a contiguous tensor of one dimension"
LAYOUTS = [
    Case(
        *(f"state {label}", STEPS, {"state": change}, ValueError),
        f"state: expected {DENSE}, got shape [5, 7] with strides {got}; pass state.contig...",
    )
    for label, change, got in (
        ("with gaps in rows", lambda s: s.repeat_interleave(2, dim=1)[:, ::2], "[14, 2]"),
        ("with gaps between rows", lambda s: torch.cat([s, s], dim=1)[:, :7], "[14, 1]"),
        ("expanded", lambda s: s[:1].expand(5, 7), "[0, 1]"),
    )
] + [
    Case(
        *("cast in another order", STEPS, {"cast": lambda c: c.t().contiguous().t()}, ValueError),
        "cast: expected the strides of state, [7, 1], got [1, 5]; allocate it with torch...",
    ),
    Case(
        *("digits of two dimensions", EXACT_OPS, {"digits": lambda d: d.view(2, 16)}, ValueError),
        f"digits: expected {FLAT}, got shape [2, 16] with strides [16, 1]; ...digit_bytes(...",
    ),
    Case(
        *("digits with gaps", EXACT_OPS, {"digits": lambda d: d.repeat(2)[::2]}, ValueError),
        f"digits: expected {FLAT}, got shape [32] with strides [2]; ...digit_bytes(...",
    ),
    Case(
        *("digits one too few", EXACT_OPS, {"digits": lambda d: d[:-1]}, ValueError),
        "digits: expected at least 32 bytes for this state and beta, got 31; ...digit_bytes(...",
    ),
    Case(
        *("digits for a smaller base", EXACT_OPS, {"beta": 0.95}, ValueError),
        "digits: expected at least 64 bytes for this state and beta, got 32; ...digit_bytes(...",
    ),
    *(
        Case(
            *(f"flag of {n}", FLAGGED, {"flag": torch.zeros(n, dtype=I32)}, ValueError),
            f"flag: expected one element, got {n} elements; allocate it with torch.zeros(1, ...",
        )
        for n in (0, 2)
    ),
]

RESIDUAL = [
    Case(label, ("residual",), change, kind, message)
    for label, change, kind, message in (
        (
            *("z int32", {"z": as_type(I32)}, TypeError),
            f"z: expected {ANY_FLOAT}, got torch.int32; convert it with z.to(torch.float32)",
        ),
        (
            *("f float64", {"f": as_type(F64)}, TypeError),
            f"f: expected {TO_F32} for a state of torch.float32, got torch.float64; convert it...",
        ),
        (
            *("f transposed", {"f": torch.t}, ValueError),
            "f: expected shape [5, 7], the shape of z, got [7, 5]; ...does not broadcast",
        ),
        (
            *("z expanded", {"z": lambda z: z[:1].expand(5, 7)}, ValueError),
            f"z: expected {DENSE}, got shape [5, 7] with strides [0, 1]; pass z.contig...",
        ),
    )
]

CASES = (*BETAS, *INTEGERS, *DTYPES, *SHAPES, *LAYOUTS, *RESIDUAL)
