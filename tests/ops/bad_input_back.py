"""Invalid arguments of the adjoint, and of the passes that fuse it with a step: see bad_input."""

from __future__ import annotations

import math
from typing import Any

import torch

from tests.ops.arguments import EXACT_PASSES, PASSES, grad_of, state_of
from tests.ops.bad_input import BF16, DENSE, F16, F32, F64, I8, TO_F32, Case, as_type

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
                f"{name}: expected shape [5, 7], the shape of grad, got [7, 5]; ...broadcast",
            )
            for name in ("vjp", "seed")
        ),
        (
            *("grad expanded", {"grad": lambda g: g[:1].expand(5, 7)}, ValueError),
            f"grad: expected {DENSE}, got shape [5, 7] with strides [0, 1]; pass grad...",
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
    """One case per pass; {state} and {grad} stand for the pass's names of these arguments."""
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
        "f: expected shape [5, 7], the shape of {state}, got [7, 5]; ...does not broadcast",
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
        "next_beta: expected a number at least 1/256 away from 1 ..., got 1.001953125; choose ...",
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
        "{grad}: expected shape [5, 7], the shape of f, got [7]; ...does not broadcast",
    ),
    *of_pass(
        *("grad expanded", PASSES, "{grad}", lambda g: g[:1].expand(5, 7), ValueError),
        f"{{grad}}: expected {DENSE}, got shape [5, 7] with strides [0, 1]; pass {{grad}}...",
    ),
    *of_pass(
        *("vjp of another shape", PASSES, "vjp", torch.t, ValueError),
        "vjp: expected shape [5, 7], the shape of {grad}, got [7, 5]; ...does not broadcast",
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

CASES = (*ADJOINT, *PASS_CASES)
