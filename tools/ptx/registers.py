"""What a register holds: an array, or what tells that not every thread has written it."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from tools.ptx.errors import Fault
from tools.ptx.types import Array


class Unwritten:
    """A register that no thread has written; to read it is a fault."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def dtype(self) -> NoReturn:
        """None: asking for it, as every read does, is the fault."""
        raise Fault(f"reads {self.name}, which nothing has written")

    def view(self, dtype: np.dtype[Any]) -> NoReturn:
        """A fault, too."""
        raise Fault(f"reads {self.name}, which nothing has written")

    def merge(self, value: Array, mask: Array, current: Any) -> PartlyWritten:
        """The register after `value` was stored where `mask` is true."""
        return PartlyWritten(self.name, np.where(mask, value, value.dtype.type(0)), mask, current)


class PartlyWritten:
    """A register that the threads of `written` have written; only they may read it.

    `current` gives the mask of the threads that run.
    """

    dtype = None

    def __init__(self, name: str, values: Array, written: Array, current: Any) -> None:
        self.name, self.values, self.written, self.current = name, values, written, current

    def view(self, dtype: np.dtype[Any]) -> Array:
        """The values, for the threads that run."""
        mask = self.current()
        if mask is None or (mask & ~self.written).any():
            raise Fault(f"reads {self.name}, which only other threads have written")
        return self.values.view(dtype)

    def merge(self, value: Array, mask: Array, current: Any) -> PartlyWritten | Array:
        """The register after `value` was stored where `mask` is true."""
        values = np.where(mask, value, self.values.view(value.dtype))
        written = self.written | mask
        return values if written.all() else PartlyWritten(self.name, values, written, current)


Register = Array | Unwritten | PartlyWritten
