"""Errors that stop the executor: a fault of the kernel, or an instruction that is not modeled."""

from __future__ import annotations


class Fault(Exception):  # noqa: N818
    """Illegal behavior of the kernel: an access out of bounds, a race, a divergent barrier, ..."""


class Missing(NotImplementedError):  # noqa: N818
    """The executor does not support an instruction, modifier or operand, quoted in the message."""
