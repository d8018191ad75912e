"""The adjoints with names, listed for type checkers in ``options.table.AdjointName``."""

from __future__ import annotations

from ..evaluation.adjoint import ADJOINTS, Adjoint
from .backprop import Backprop, Checkpoint
from .functional import Functional
from .hooks import Hooks
from .reversible import Reversible

_ROWS: tuple[Adjoint, ...] = (Reversible(), Hooks(), Checkpoint(), Backprop(), Functional())

ADJOINTS.update((row.name, row) for row in _ROWS)
