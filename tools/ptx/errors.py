"""What stops the executor: the kernel's fault, or an instruction that is not modeled."""

from __future__ import annotations


class Fault(Exception):  # noqa: N818
    """The kernel did what none may: an access out of bounds, a race, a divergent barrier ..."""


class Missing(NotImplementedError):  # noqa: N818
    """The executor lacks an instruction, a modifier or an operand; its text is in the message."""
