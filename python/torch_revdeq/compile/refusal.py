"""Why a solve is not compiled."""

from __future__ import annotations


class Refused(Exception):  # noqa: N818 - not an error: the solver runs without the graphs
    """The reason why f cannot be two graphs, and whether it holds for all later solves."""

    def __init__(self, reason: str, *, lasts: bool = True) -> None:
        super().__init__(reason)
        self.lasts = lasts
