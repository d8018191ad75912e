"""Strategies for the numbers of every op, for fuzzing.py, which draws arguments, and test_fuzz.py.

The op itself declares its arguments (``core/roles.py``). With "list", each tensor is a list of one
to three tensors. A check of an op in real arithmetic can be added to real_arithmetic.CHECKS.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from revdeq_kernels.core import roles
from revdeq_kernels.core.op import OPS, Op
from tests.conftest import BETAS

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
I32, U8 = torch.int32, torch.uint8

ALL_DTYPES = sorted(
    # Quantized tensors are excluded: torch creates them with a quantizer, and warns.
    {d for d in vars(torch).values() if isinstance(d, torch.dtype) and ".q" not in str(d)},
    key=str,
)


@dataclass(frozen=True)
class Number:
    """An argument that is not a tensor: its type, values that must be accepted, and any others."""

    kind: type
    good: st.SearchStrategy[Any]
    odd: st.SearchStrategy[Any]


@dataclass(frozen=True)
class Spec:
    """The arguments of an op: roles by name, dtypes (None omits a tensor), and numbers."""

    tensors: dict[str, str]
    dtypes: Sequence[tuple[torch.dtype | None, ...]]
    numbers: dict[str, Number]
    op: str
    lists: bool

    @property
    def lead(self) -> str:
        """The name of the first tensor."""
        return next(iter(self.tensors))


# ---- numbers ---------------------------------------------------------------------------------


def in_disguise(x: float) -> list[Any]:
    """Other objects that may be passed as a number in Python, numeric or not."""
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
    """A beta with at least these distances from 0 and 2, and from 1."""
    below = st.floats(smallest, 1 - nearest)
    above = st.floats(1 + nearest, 2 - max(smallest, 2.0**-50))
    return Number(float, st.one_of(st.sampled_from(BETAS), below, above), ANY_FLOAT)


FINITE = st.floats(allow_nan=False, allow_infinity=False)
NUMBERS = {
    roles.BETA: beta(1e-300, 1e-9),
    roles.EXACT_BETA: beta(2.0**-28, 1 / 256),
    roles.FACTOR: Number(float, st.one_of(st.floats(-2, 2), FINITE), ANY_FLOAT),
    roles.FRAC_BITS: Number(int, st.integers(0, 30), ANY_INTEGER),
    roles.TIE: Number(int, st.integers(0, 1), ANY_INTEGER),
    roles.DTYPE: Number(torch.dtype, st.sampled_from([F32, F64, BF16, F16]), ANY_TYPE),
}


def spec(op: Op) -> Spec:
    """The declaration of the op; lists are drawn in the form of the public functions."""
    lists = op.overload_name == "list"
    described = OPS[op.name] if lists else op
    tensors = {a.name: a.role for a in described.arguments if a.is_tensor}
    numbers = {a.name: NUMBERS[a.role] for a in described.arguments if not a.is_tensor}
    return Spec(tensors, described.dtypes, numbers, op.name, lists)


SPECS = {label: spec(op) for label, op in OPS.items()}
