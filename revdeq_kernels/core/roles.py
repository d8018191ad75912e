"""The roles of an op's arguments, and their supported dtype combinations.

An op declares its arguments once, as a tuple of ``Argument``. Everything else derives from it: how
a call from Python handles them, how lists of leaves are split, which arguments a kernel is checked
with on first use, the bytes that an op moves, and the arguments in the tests.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .checks import EXACT_F_DTYPES, F32, F64, F_DTYPES

DENSE = "the lead's shape, dense, dimensions in any order"
LIKE = "the lead's shape and strides"
FREE = "the lead's shape, any strides"
DIGITS = "bytes that hold one digit per element of the lead"
FLAG = "one element, shared by all leaves of a list"
BETAS = "one beta, or one per channel of the lead"

BETA = "a number in (0, 2) other than 1"
EXACT_BETA = "a number in (0, 2), at least 1/256 away from 1"
FACTOR = "a finite number"
FRAC_BITS = "an integer from 0 to 30"
TIE = "0 or 1"
DTYPE = "the dtype of the result"

NUMBERS: dict[str, type] = {
    BETA: float,
    EXACT_BETA: float,
    FACTOR: float,
    FRAC_BITS: int,
    TIE: int,
    DTYPE: torch.dtype,
}
"""The roles of arguments that are not tensors, and their types."""


class Argument(NamedTuple):
    """An argument of an op: its name, its role, and whether the op writes to it."""

    name: str
    role: str
    written: bool = False
    optional: bool = False
    """Passed by keyword or omitted."""

    @property
    def is_tensor(self) -> bool:
        """Whether it is a tensor rather than a number."""
        return self.role not in NUMBERS

    @property
    def shared(self) -> bool:
        """Whether all leaves of a list share it."""
        return not self.is_tensor or self.role == FLAG


Arguments = tuple[Argument, ...]
Dtypes = tuple[torch.dtype | None, ...]
"""The dtypes of a call's tensors, in order; None for an omitted one."""

FLAG_ = Argument("flag", FLAG, written=True)
CAST = Argument("cast", LIKE, written=True, optional=True)
EXACT_NUMBERS = (
    Argument("beta", EXACT_BETA),
    Argument("frac_bits", FRAC_BITS),
    Argument("tie", TIE),
)

FLOAT_PAIRS = [(state, f) for state, fs in F_DTYPES.items() for f in fs]
"""(state, f): all pairs of dtypes that the float ops support."""


def casts(f: torch.dtype) -> list[torch.dtype | None]:
    """The dtypes that `cast` may have for this dtype of f; None for no cast."""
    return list(dict.fromkeys([None, f, F32]))


def wide(f: torch.dtype) -> torch.dtype:
    """The dtype of the gradients for this dtype of f."""
    return F64 if f == F64 else F32


def vjps(f: torch.dtype) -> list[torch.dtype]:
    """The dtypes that a product with the Jacobian of f may have."""
    return list(dict.fromkeys((f, wide(f))))


FLOAT_CASES: list[tuple[torch.dtype, torch.dtype, torch.dtype | None]] = [
    (state, f, cast) for state, f in FLOAT_PAIRS for cast in casts(f)
]
"""(state, f, cast): all combinations that the float ops support."""

EXACT_CASES: list[tuple[torch.dtype, torch.dtype | None]] = [
    (f, cast) for f in EXACT_F_DTYPES for cast in casts(f)
]
"""(f, cast): all combinations that the exact ops support."""
