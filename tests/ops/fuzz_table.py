"""What the arguments of every op are, for fuzzing.py, which draws them, and test_fuzz.py.

To add an op, add a line to SPECS: the role of each tensor, the dtypes that go together, and the
numbers. The first tensor, the lead, decides about the shape. For example

    "residual": Spec({"z": FREE, "f": FREE}, [(F32, BF16), (F32, F32)]),

To add an argument, add it to that line. Another form of an op says whose it is: `op="update_"`. A
number that is a tensor has the role SCALAR. With `lists=True` each tensor is a list of one to three
tensors; the forms for lists follow from the forms for tensors.

Beside SPECS, an op needs its lines in arguments.OPS and WRITTEN, and its meaning in real arithmetic
may be added to real_arithmetic.CHECKS.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from tests.conftest import BETAS, EXACT_F, FLOAT_PAIRS
from tests.ops.arguments import exact_cases, float_cases

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
I32, U8 = torch.int32, torch.uint8

ALL_DTYPES = sorted(
    # Quantized tensors are left out: torch makes them with a quantizer, and warns.
    {d for d in vars(torch).values() if isinstance(d, torch.dtype) and ".q" not in str(d)},
    key=str,
)

DENSE = "of the lead's shape, without gaps, in any order of dimensions"
LIKE = "of the lead's shape and strides"
FREE = "of the lead's shape, any strides"
DIGITS = "bytes, one digit for each element of the lead"
ONE = "one element"
SCALAR = "a number from 0.05 to 0.95, one for all tensors of a list"


@dataclass(frozen=True)
class Number:
    """An argument that is no tensor: its type, values that must be taken, and any others."""

    kind: type
    good: st.SearchStrategy[Any]
    odd: st.SearchStrategy[Any]


@dataclass(frozen=True)
class Spec:
    """The arguments of an op: roles by name, dtypes (None leaves a tensor out), and numbers."""

    tensors: dict[str, str]
    dtypes: Sequence[tuple[torch.dtype | None, ...]]
    numbers: dict[str, Number] = field(default_factory=dict)
    op: str = ""  # where the name of the entry is another
    lists: bool = False

    @property
    def lead(self) -> str:
        """The name of the first tensor."""
        return next(iter(self.tensors))


# ---- numbers ---------------------------------------------------------------------------------


def in_disguise(x: float) -> list[Any]:
    """What else may stand for a number in Python, whether or not it is one."""
    scalars = (np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_)
    return [
        *(kind(x) for kind in (int, bool, Fraction, decimal.Decimal, complex, str, *scalars)),
        *(None, [x], np.array(x), torch.tensor(x), torch.tensor([x])),
        torch.tensor(x, requires_grad=True),
    ]


ODD_FLOATS = [
    *(0.0, -0.0, 1.0, 2.0, -0.5, 2.5, math.nan, math.inf, -math.inf, 5e-324, 1e-310, 1e308),
    *(
        1 - 1 / 256,
        1 + 1 / 256,
        1 - 1 / 257,
        1 + 1 / 257,
        math.nextafter(1, 0),
        math.nextafter(2, 0),
    ),
    *(0, 1, 2, -1, 2**63, -(2**70), 10**400, Fraction(1, 3), Fraction(3)),
]
ODD_INTEGERS = [-1, 2, 31, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, math.nan]

ANY_FLOAT = st.one_of(
    st.floats(),
    st.floats(0, 2),
    st.sampled_from(ODD_FLOATS),
    st.sampled_from([*in_disguise(0.5), *in_disguise(0.8)]),
)
ANY_INTEGER = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from(ODD_INTEGERS),
    st.sampled_from([*in_disguise(1.0), *in_disguise(16.0)]),
)
ANY_TYPE = st.sampled_from([*ALL_DTYPES, None, "float32", float, 6, np.float32])


def beta(smallest: float, nearest: float) -> Number:
    """A beta no nearer than that to 0 and 2, and to 1."""
    below = st.floats(smallest, 1 - nearest)
    above = st.floats(1 + nearest, 2 - max(smallest, 2.0**-50))
    return Number(float, st.one_of(st.sampled_from(BETAS), below, above), ANY_FLOAT)


FINITE = st.floats(allow_nan=False, allow_infinity=False)
BETA, EXACT_BETA = beta(1e-300, 1e-9), beta(2.0**-28, 1 / 256)
FACTOR = Number(float, st.one_of(st.floats(-2, 2), FINITE), ANY_FLOAT)
BITS = Number(int, st.integers(0, 30), ANY_INTEGER)
TIE = Number(int, st.integers(0, 1), ANY_INTEGER)
TYPE = Number(torch.dtype, st.sampled_from([F32, F64, BF16, F16]), ANY_TYPE)

# ---- the table -------------------------------------------------------------------------------

STEP = Spec({"state": DENSE, "f": FREE, "cast": LIKE}, float_cases(), {"beta": BETA})
EXACT = {"beta": EXACT_BETA, "frac_bits": BITS, "tie": TIE}
ADJOINT = [(F64, F64, F64), (F32, F32, F32)]
ADJOINT += [(F32, vjp, seed) for seed in (BF16, F16) for vjp in (seed, F32)]


def wide(f: torch.dtype) -> torch.dtype:
    """The dtype of the gradients of such an f."""
    return F64 if f == F64 else F32


def vjps(f: torch.dtype) -> list[torch.dtype]:
    """The dtypes that a product with f's Jacobian can have."""
    return list(dict.fromkeys((f, wide(f))))


def carry(lead: str, grad: str, exact: bool, numbers: dict[str, Number]) -> Spec:
    """A pass with a seed and a cast."""
    digits = {"digits": DIGITS} if exact else {}
    tensors = {lead: DENSE, **digits, "f": FREE, grad: DENSE, "vjp": FREE, "seed": LIKE}
    cases = [(I32, U8, f, cast) for f, cast in exact_cases()] if exact else float_cases()
    dtypes = [
        (*first, f, wide(f), vjp, f, cast)
        for *first, f, cast in cases
        if f is not None
        for vjp in vjps(f)
    ]
    return Spec(tensors | {"cast": LIKE}, dtypes, numbers)


def start(exact: bool, numbers: dict[str, Number]) -> Spec:
    """The pass at the start, which takes in both gradients."""
    digits = {"digits": DIGITS} if exact else {}
    tensors = {"y": DENSE, **digits, "f": FREE, "grad_z": DENSE, "grad_y": LIKE, "vjp": FREE}
    pairs = [(I32, U8, f) for f in EXACT_F] if exact else FLOAT_PAIRS
    dtypes = [(*first, f, wide(f), wide(f), vjp) for *first, f in pairs for vjp in vjps(f)]
    return Spec(tensors, dtypes, numbers)


CHANNELS = replace(
    STEP,
    tensors={"state": DENSE, "f": FREE, "beta": SCALAR, "cast": LIKE},
    dtypes=[(s, f, F64 if s == F64 else F32, cast) for s, f, cast in float_cases()],
    numbers={},
)

SPECS = {
    "update_": STEP,
    "invert_": STEP,
    "adjoint_": Spec(
        *({"grad": DENSE, "vjp": FREE, "seed": LIKE}, ADJOINT, {"scale": FACTOR, "beta": FACTOR})
    ),
    "update_exact_": Spec(
        {"state": DENSE, "digits": DIGITS, "flag": ONE, "f": FREE, "cast": LIKE},
        [(I32, U8, I32, f, cast) for f, cast in exact_cases()],
        EXACT,
    ),
    "invert_exact_": Spec(
        {"state": DENSE, "digits": DIGITS, "f": FREE, "cast": LIKE},
        [(I32, U8, f, cast) for f, cast in exact_cases()],
        EXACT,
    ),
    "quantize": Spec(
        *(
            {"x": FREE, "flag": ONE},
            [(f, i) for f in EXACT_F for i in (None, I32)],
            {"frac_bits": BITS},
        )
    ),
    "dequantize": Spec({"state": FREE}, [(I32,)], {"frac_bits": BITS, "dtype": TYPE}),
    "residual": Spec({"z": DENSE, "f": FREE}, FLOAT_PAIRS),
    "invert_z_adjoint_y_": carry("z", "grad_y", False, {"beta": BETA}),
    "invert_y_adjoint_z_": carry("y", "grad_z", False, {"beta": BETA, "next_beta": BETA}),
    "invert_y_adjoint_z0_": start(False, {"beta": BETA}),
    "invert_z_adjoint_y_exact_": carry("z", "grad_y", True, EXACT),
    "invert_y_adjoint_z_exact_": carry("y", "grad_z", True, EXACT | {"next_beta": EXACT_BETA}),
    "invert_y_adjoint_z0_exact_": start(True, EXACT),
}
SPECS |= {f"{name} list": replace(spec, op=name, lists=True) for name, spec in SPECS.items()}
SPECS |= {f"{op} channels": replace(CHANNELS, op=op) for op in ("update_", "invert_")}
