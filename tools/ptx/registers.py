"""What a register holds: an array, or the mark that nothing has been written to it."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from tools.ptx.errors import Fault
from tools.ptx.types import UNSIGNED, Array

POISON = b"\xf7\x7f" * 8
"""NaN in every format of floats, and far outside of every allocation as an address."""


class Unwritten:
    """A register that no thread has written: to read it is a fault.

    Once some threads have, the others find a value there that spoils what is computed with it. To
    read it is no fault, since compilers do so where they drop the result: a warp sums what some of
    its lanes have loaded.
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
        size = value.dtype.itemsize
        if value.dtype == np.bool_:
            return np.where(mask, value, True)
        poison = np.frombuffer(POISON[:size], UNSIGNED[size]).view(value.dtype)
        return np.where(mask, value, poison)


Register = Array | Unwritten
