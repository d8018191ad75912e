"""Why a solve is not compiled."""

from __future__ import annotations


class Refused(Exception):  # noqa: N818 - no error: the solver takes what the graphs do not
    """Says what two graphs of f cannot hold."""
