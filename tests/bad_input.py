"""The bad input of test_errors.py: for every op what is changed, and the error that answers it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from arguments import EXACT_OPS, EXACT_PASSES, FLOAT_OPS, PASSES, STEPS, grad_of, state_of

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
I64, I32, I8, U8 = torch.int64, torch.int32, torch.int8, torch.uint8
FIXED = (*EXACT_OPS, "quantize", "dequantize")
FLAGGED = ("update_exact_", "quantize")


class Case(NamedTuple):
    """A change of good arguments, and the error that answers it; "..." stands for any words."""

    label: str
    ops: tuple[str, ...]
    change: dict[str, Any]  # by argument: a value, or a function of the good value
    kind: type[Exception]
    message: str


def as_type(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: t.to(dtype)


# The good arguments: shape [5, 7], a float32 (or int32) state, bfloat16 f and cast, beta 0.8, which
# packs three digits to a byte, 32 bytes.

BETAS = [
    Case(
        *(f"beta {beta}", STEPS, {"beta": beta}, ValueError),
        f"beta: expected a number inside (0, 2) other than 1, got {beta:g}; ...no inverse",
    )
    for beta in (0.0, 1.0, 2.0, -0.5, 2.5, math.nan, math.inf, -math.inf)
] + [
    Case(
        *(f"beta {beta}", EXACT_OPS, {"beta": beta}, ValueError),
        f"beta: expected {expected} for an exact step..., got {got}; move beta away from {end}...",
    )
    for beta, expected, got, end in (
        (1 + 1 / 512, "|1 - beta| >= 1/256", "1.001953125, of base 512", "1"),
        (1 - 1 / 1024, "|1 - beta| >= 1/256", "0.9990234375, of base 1024", "1"),
        (1 - 2.0**-52, "|1 - beta| >= 1/256", "1", "1"),
        (1e-10, "|1 - beta| < 1 by more than 2^-30", "1e-10", "0 or 2"),
        (2 - 2.0**-40, "|1 - beta| < 1 by more than 2^-30", "2", "0 or 2"),
    )
]

INTEGERS = [
    Case(
        *(f"frac_bits {bits}", FIXED, {"frac_bits": bits}, ValueError),
        f"frac_bits: expected an integer from 0 to 30, got {bits}; 20 suits float32 f...",
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
            f"dtype: expected torch.float32, torch.float64, ..., got {dtype}; ask for one of...",
        )
        for dtype in (I32, torch.complex64)
    ),
]

SHAPES = [
    Case(
        *(f"{name} {label}", STEPS, {name: change}, ValueError),
        f"{name}: expected shape [5, 7], that of state, got {got}; ...nothing is broadcast",
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

DENSE = "a dense tensor (elements without gaps, in any order of dimensions)"
FLAT = "a contiguous tensor of one dimension"
LAYOUTS = [
    Case(
        *(f"state {label}", STEPS, {"state": change}, ValueError),
        f"state: expected {DENSE}, got shape [5, 7] with strides {got}; work on state.contig...",
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

ADJOINT = [
    Case(label, ("adjoint_",), change, kind, message)
    for label, change, kind, message in (
        *(
            (
                *(f"{name} {value}", {name: value}, ValueError),
                f"{name}: expected a finite number, got {value:g}; check how...",
            )
            for name in ("scale", "beta")
            for value in (math.nan, math.inf, -math.inf)
        ),
        (
            *("grad bfloat16", {"grad": as_type(BF16)}, TypeError),
            "grad: expected torch.float32 or torch.float64, got torch.bfloat16; convert it...",
        ),
        (
            *("seed float64", {"seed": as_type(F64)}, TypeError),
            f"seed: expected {TO_F32} for a grad of torch.float32, got torch.float64; convert...",
        ),
        (
            *("vjp float16", {"vjp": as_type(F16)}, TypeError),
            "vjp: expected torch.bfloat16 or torch.float32, the dtype of seed or float32, got...",
        ),
        (
            *("vjp narrower than seed", {"seed": as_type(F32)}, TypeError),
            "vjp: expected torch.float32, the dtype of seed, got torch.bfloat16; convert it...",
        ),
        (
            *("vjp narrower than float64", {"grad": as_type(F64)}, TypeError),
            "vjp: expected torch.float64 for a grad of torch.float64, got torch.bfloat16; ...",
        ),
        *(
            (
                *(f"{name} transposed", {name: torch.t}, ValueError),
                f"{name}: expected shape [5, 7], that of grad, got [7, 5]; ...broadcast",
            )
            for name in ("vjp", "seed")
        ),
        (
            *("grad expanded", {"grad": lambda g: g[:1].expand(5, 7)}, ValueError),
            f"grad: expected {DENSE}, got shape [5, 7] with strides [0, 1]; work on grad...",
        ),
        (
            *("seed in another order", {"seed": lambda s: s.t().contiguous().t()}, ValueError),
            "seed: expected the strides of grad, [7, 1], got [1, 5]; allocate it with torch...",
        ),
    )
]

NOT_START = tuple(op for op in PASSES if "z0" not in op)
START = tuple(op for op in PASSES if "z0" in op)
FIRST = tuple(op for op in PASSES if op.startswith("invert_z"))
SECOND = tuple(op for op in NOT_START if op not in FIRST)


def of_pass(label: str, ops: tuple[str, ...], name: str, change: Any, *rest: Any) -> list[Case]:
    """A case for each of the passes; {state} and {grad} stand for what the pass calls them."""
    kind, message = rest
    return [
        Case(
            label,
            (op,),
            {name.format(grad=grad_of(op), state=state_of(op)): change},
            kind,
            message.format(grad=grad_of(op), state=state_of(op)),
        )
        for op in ops
    ]


PASS_CASES = [
    *of_pass(
        *("state int8", PASSES, "{state}", as_type(I8), TypeError),
        "{state}: expected ..., got torch.int8; convert it with {state}.to(...)",
    ),
    *of_pass(
        *("f of another shape", PASSES, "f", torch.t, ValueError),
        "f: expected shape [5, 7], that of {state}, got [7, 5]; ...nothing is broadcast",
    ),
    *(
        case
        for beta in (0.0, 1.0, 2.0, math.nan)
        for case in of_pass(
            *(f"next_beta {beta}", SECOND, "next_beta", beta, ValueError),
            f"next_beta: expected a number inside (0, 2) other than 1, got {beta:g}; ...",
        )
    ),
    *of_pass(
        *("next_beta too near to 1", SECOND[1:], "next_beta", 1 + 1 / 512, ValueError),
        "next_beta: expected |1 - beta| >= 1/256 for an exact step..., got 1.001953125, of base...",
    ),
    *of_pass(
        *("grad float64", PASSES, "{grad}", as_type(F64), TypeError),
        "{grad}: expected torch.float32 for an f of torch.bfloat16, got torch.float64; convert...",
    ),
    *of_pass(
        *("other grad float64", START, "grad_y", as_type(F64), TypeError),
        "grad_y: expected torch.float32 for an f of torch.bfloat16, got torch.float64; convert...",
    ),
    *of_pass(
        *("vjp float16", PASSES, "vjp", as_type(F16), TypeError),
        "vjp: expected torch.bfloat16 or torch.float32, the dtype of f or float32, got ...",
    ),
    *of_pass(
        *("seed float32", NOT_START, "seed", as_type(F32), TypeError),
        "seed: expected torch.bfloat16, the dtype of f, got torch.float32; convert it with seed...",
    ),
    *of_pass(
        *("grad of another shape", PASSES, "{grad}", lambda g: g[0], ValueError),
        "{grad}: expected shape [5, 7], that of f, got [7]; ...nothing is broadcast",
    ),
    *of_pass(
        *("grad expanded", PASSES, "{grad}", lambda g: g[:1].expand(5, 7), ValueError),
        f"{{grad}}: expected {DENSE}, got shape [5, 7] with strides [0, 1]; work on {{grad}}...",
    ),
    *of_pass(
        *("vjp of another shape", PASSES, "vjp", torch.t, ValueError),
        "vjp: expected shape [5, 7], that of {grad}, got [7, 5]; ...nothing is broadcast",
    ),
    *of_pass(
        *("seed in another order", NOT_START, "seed", lambda s: s.t().contiguous().t(), ValueError),
        "seed: expected the strides of {grad}, [7, 1], got [1, 5]; allocate it with torch.empty...",
    ),
    *of_pass(
        *("other in another order", START, "grad_y", lambda s: s.t().contiguous().t(), ValueError),
        "grad_y: expected the strides of {grad}, [7, 1], got [1, 5]; allocate it with torch.emp...",
    ),
    *of_pass(
        *("cast in another order", NOT_START, "cast", lambda c: c.t().contiguous().t(), ValueError),
        "cast: expected the strides of {state}, [7, 1], got [1, 5]; allocate it with torch.empt...",
    ),
    *of_pass(
        *("digits one too few", EXACT_PASSES, "digits", lambda d: d[:-1], ValueError),
        "digits: expected at least 32 bytes for this state and beta, got 31; ...digit_bytes(...",
    ),
    *of_pass(
        *("tie 2", EXACT_PASSES, "tie", 2, ValueError),
        "tie: expected 0 or 1, got 2; alternate it: n % 2 for y...",
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
            "f: expected shape [5, 7], that of z, got [7, 5]; ...nothing is broadcast",
        ),
        (
            *("z expanded", {"z": lambda z: z[:1].expand(5, 7)}, ValueError),
            f"z: expected {DENSE}, got shape [5, 7] with strides [0, 1]; work on z.contig...",
        ),
    )
]

CASES = (
    *(*BETAS, *INTEGERS, *DTYPES, *SHAPES, *LAYOUTS, *ADJOINT),
    *(*PASS_CASES, *RESIDUAL),
)
