"""What a register holds: an array, or the mark that nothing has been written to it."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from tools.ptx.errors import Fault
from tools.ptx.types import UNSIGNED, Array


def poison(dtype: np.dtype[Any]) -> Array:
    """What spoils a computation: NaN as a float, as an address far outside of every allocation."""
    if dtype == np.bool_:
        return np.ones(1, np.bool_)
    return np.frombuffer(b"\xf7\x7f" * 8, UNSIGNED[dtype.itemsize], 1).view(dtype)


class Unwritten:
    """A register that no thread has written: to read it is a fault.

    Once some threads have, the others find `poison` there. To read that is no fault: compilers do
    so where they drop the result, as a warp that sums what some of its lanes have loaded.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def dtype(self) -> NoReturn:
        """To ask for it, as every read does, is the fault."""
        raise Fault(f"reads {self.name}, which nothing has written")

    def view(self, dtype: np.dtype[Any]) -> NoReturn:
        """A fault, too."""
        raise Fault(f"reads {self.name} as {dtype}, which nothing has written")

    def merge(self, value: Array, mask: Array) -> Array:
        """The register after `value` was stored where `mask` is true."""
        return np.where(mask, value, poison(value.dtype))


Register = Array | Unwritten
