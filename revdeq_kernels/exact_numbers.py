"""The integer arithmetic behind an exact half step: how beta is represented and digits are packed.

``csrc/exact_step.h`` implements the same formulas.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

ONE = 30
"""1 - beta is stored in units of 2**-ONE."""

RANGE = 2.0**30 - 256.0
"""Values of F and of the new state must stay inside (-RANGE, RANGE)."""

LEFT_RANGE = -(2**31)
"""Marks an element that left the range, in the final state of an equilibrium cell."""

FIXED_MIN, FIXED_MAX = -(2.0**31), 2.0**31 - 128.0
"""F saturates at the limits of int32; the upper one is the largest float32 below 2**31."""

BLOCK_LANES = 32
"""Digits are packed in blocks of digits_per_byte x BLOCK_LANES elements."""


class Contraction(NamedTuple):
    """1 - beta as the ratio sign * 2**30 / q, and the base and packing of its digits."""

    sign: int
    q: int
    base: int
    digits_per_byte: int

    @property
    def one_minus_beta(self) -> float:
        """The value of 1 - beta that the exact ops apply."""
        return self.sign * 2.0**ONE / self.q

    def blocks(self, numel: int) -> int:
        """The number of blocks that hold one digit for each of `numel` elements."""
        return -(-numel // (self.digits_per_byte * BLOCK_LANES))


class BetaError(ValueError):
    """An invalid beta: carries what was expected, what was given, and a remedy."""

    def __init__(self, expected: str, got: str, remedy: str) -> None:
        """Store the three parts, from which callers build a message that names the op."""
        self.expected, self.got, self.remedy = expected, got, remedy
        super().__init__(f"beta: expected {expected}, got {got}; {remedy}")


def check_beta(beta: float) -> None:
    """Raise BetaError if the step with this beta does not contract or has no inverse."""
    if not (0.0 < beta < 2.0 and beta != 1.0):
        raise BetaError(
            "a number inside (0, 2) other than 1",
            f"{beta:.12g}",
            "outside (0, 2) the step does not contract, and at 1 it has no inverse",
        )


@lru_cache(maxsize=1024)
def contraction(beta: float) -> Contraction:
    """The exact representation of 1 - beta; ValueError where |1 - beta| < 1/256."""
    check_beta(beta)
    ratio = 2.0**ONE / abs(1.0 - beta)
    q = 2 * round(ratio / 2.0)
    if q > 2**38:
        raise BetaError(
            "a number at least 1/256 away from 1 for an exact step",
            f"{beta:.12g}",
            "choose at most 0.996 or at least 1.004, or keep the state in a float format",
        )
    if q <= 2**ONE:
        raise BetaError(
            "a number more than 2^-30 away from 0 and 2 for an exact step",
            f"{beta:.12g}",
            "move beta away from 0 or 2, or keep the state in a float format",
        )
    base = -(-q >> ONE)
    digits = 1
    while base ** (digits + 1) <= 256:
        digits += 1
    return Contraction(1 if beta < 1.0 else -1, q, base, digits)


@lru_cache(maxsize=1024)
def form_of(beta: float) -> tuple[str, int]:
    """How a step divides by q, and its digits per byte; kernels are specialized for both.

    "shift" divides by a power of two, "integer" by any other integer, "general" by a fraction.
    """
    c = contraction(beta)
    whole = c.q >> ONE
    if c.q % 2**ONE:
        return "general", c.digits_per_byte
    return "integer" if whole & (whole - 1) else "shift", c.digits_per_byte


def effective_beta(beta: float) -> float:
    """The beta that the exact ops apply instead of `beta`; the two differ by at most 1e-9.

    Computations on an exact state, such as an adjoint or a statistic, must use this value.

    Raises:
        ValueError: an exact step cannot take `beta`: see ``update_exact_``.
    """
    return 1.0 - contraction(float(beta)).one_minus_beta


def digit_base(beta: float) -> int:
    """The base of the digits that an exact half step stores: 1 / abs(1 - beta), rounded up.

    A digit holds what a half step rounds away of one element: 1 bit (base 2) at beta = 0.5.
    ValueError if an exact step cannot take `beta`.
    """
    return contraction(float(beta)).base


def digit_bytes(numel: int, beta: float) -> int:
    """The size in bytes of the digits of one exact half step, for a state of `numel` elements.

    Each byte holds as many digits as fit: 8 at base 2, 5 at base 3, and 1 from base 17 up. The
    result is numel / digits_per_byte, rounded up to a multiple of 32. ValueError if an exact step
    cannot take `beta`.
    """
    return contraction(float(beta)).blocks(numel) * BLOCK_LANES
