"""Why a solve is not compiled."""

from __future__ import annotations


class Refused(Exception):  # noqa: N818 - no error: the solver takes what the graphs do not
    """Says what two graphs of f cannot hold; and whether that lasts, for f in this form."""

    def __init__(self, reason: str, *, lasts: bool = True) -> None:
        super().__init__(reason)
        self.lasts = lasts
