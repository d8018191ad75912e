"""The content of a register: an array, or a marker for a register that was never written."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from tools.ptx.errors import Fault
from tools.ptx.types import UNSIGNED, Array


def poison(dtype: np.dtype[Any]) -> Array:
    """Poison: NaN as a float, and far outside of every allocation as an address."""
    if dtype == np.bool_:
        return np.ones(1, np.bool_)
    return np.frombuffer(b"\xf7\x7f" * 8, UNSIGNED[dtype.itemsize], 1).view(dtype)


class Unwritten:
    """A register that no thread has written: reading it is a fault.

    Once some threads have written it, it contains `poison` for the others. Reading that is not a
    fault, because compilers do so if they discard the result, for example when a warp sums what
    only some of its lanes have loaded.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def dtype(self) -> NoReturn:
        """Queried by every read, which is the fault."""
        raise Fault(f"reads {self.name}, which nothing has written")

    def view(self, dtype: np.dtype[Any]) -> NoReturn:
        """Also a fault."""
        raise Fault(f"reads {self.name} as {dtype}, which nothing has written")

    def merge(self, value: Array, mask: Array) -> Array:
        """The register after storing `value` where `mask` is true."""
        return np.where(mask, value, poison(value.dtype))


Register = Array | Unwritten
