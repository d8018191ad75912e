"""What the arguments of an op are, and which dtypes they have together.

An op names its arguments once, as a tuple of ``Argument``. From it follow what a call from Python
does with them, how lists of leaves are taken apart, the arguments that a kernel is tried with at
its first use, the bytes that an op moves, and the arguments in the tests.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .checks import EXACT_F_DTYPES, F32, F64, F_DTYPES

DENSE = "of the lead's shape, without gaps, in any order of dimensions"
LIKE = "of the lead's shape and strides"
FREE = "of the lead's shape, any strides"
DIGITS = "bytes, one digit for each element of the lead"
FLAG = "one element, one for all leaves of a list"
BETAS = "one beta, or one for each channel of the lead"

BETA = "a number in (0, 2) other than 1"
EXACT_BETA = "a number in (0, 2), 1/256 away from 1"
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
"""The roles of what is no tensor, and its type."""


class Argument(NamedTuple):
    """An argument of an op: its name, its role, and whether the op writes it."""

    name: str
    role: str
    written: bool = False
    optional: bool = False
    """Given by keyword, or left out."""

    @property
    def is_tensor(self) -> bool:
        """Whether it is a tensor, and not a number."""
        return self.role not in NUMBERS

    @property
    def shared(self) -> bool:
        """Whether lists of leaves have one for all."""
        return not self.is_tensor or self.role == FLAG


Arguments = tuple[Argument, ...]
Dtypes = tuple[torch.dtype | None, ...]
"""The dtypes of the tensors of a call, in their order; None for one that is left out."""

FLAG_ = Argument("flag", FLAG, written=True)
CAST = Argument("cast", LIKE, written=True, optional=True)
EXACT_NUMBERS = (
    Argument("beta", EXACT_BETA),
    Argument("frac_bits", FRAC_BITS),
    Argument("tie", TIE),
)

FLOAT_PAIRS = [(state, f) for state, fs in F_DTYPES.items() for f in fs]
"""(state, f): all pairs of dtypes that the float ops take."""


def casts(f: torch.dtype) -> list[torch.dtype | None]:
    """The dtypes that `cast` may have beside f; None for no cast."""
    return list(dict.fromkeys([None, f, F32]))


def wide(f: torch.dtype) -> torch.dtype:
    """The dtype of the gradients of such an f."""
    return F64 if f == F64 else F32


def vjps(f: torch.dtype) -> list[torch.dtype]:
    """The dtypes that a product with f's Jacobian can have."""
    return list(dict.fromkeys((f, wide(f))))


FLOAT_CASES: list[tuple[torch.dtype, torch.dtype, torch.dtype | None]] = [
    (state, f, cast) for state, f in FLOAT_PAIRS for cast in casts(f)
]
"""(state, f, cast) for every combination that the float ops take."""

EXACT_CASES: list[tuple[torch.dtype, torch.dtype | None]] = [
    (f, cast) for f in EXACT_F_DTYPES for cast in casts(f)
]
"""(f, cast) for every combination that the exact ops take."""
