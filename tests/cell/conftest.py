"""The implementations of the equilibrium cell that run here; Gluon runs in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from revdeq_kernels.ops.cell import choice
from tests.conftest import BACKENDS

HERE = ["composite"]
HERE += ["cpu"] if "cpu" in BACKENDS else []
HERE += ["triton", "gluon"] if "triton" in BACKENDS else []


@pytest.fixture
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the implementation, with which it runs in this test."""
    if request.param == "gluon":
        from revdeq_kernels.triton.kernels import gluon_cell
        from revdeq_kernels.triton.launch.cell import Launcher
        from tests.cell.gluon_interpreter import interpreted

        launcher = Launcher(interpreted(gluon_cell))
        monkeypatch.setattr(choice, "why_not", lambda implementation, w, act: None)
        monkeypatch.setattr(choice, "launcher", lambda implementation: launcher)
    return request.param


class Slow(tuple[Any, ...]):
    """A case in the slow tier."""


def each(names: str = "", **rows: Sequence[tuple[Any, ...]]) -> pytest.MarkDecorator:
    """Parametrize a test by implementation, each with its own rows of these arguments."""
    given = [
        pytest.param(name, *row, marks=pytest.mark.slow if isinstance(row, Slow) else ())
        for name in HERE
        for row in rows.get(name, ())
    ]
    return pytest.mark.parametrize(
        ("implementation", *names.split()), given, indirect=["implementation"]
    )


every = pytest.mark.parametrize("implementation", HERE, indirect=True)
"""Parametrizes a test by all implementations."""
