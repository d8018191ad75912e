"""Ways of differentiating a solve, with what they share.

An adjoint of your own is a subclass of ``Adjoint``, or of one of those here, an instance of which
is passed as ``solve(..., adjoint=Mine())``.
"""

from __future__ import annotations

from ..evaluation.adjoint import Adjoint
from .backprop import Backprop, Checkpoint
from .functional import Functional
from .hooks import Hooks
from .problem import Outputs, Problem
from .reversible import Reversible

__all__ = [
    "Adjoint",
    "Backprop",
    "Checkpoint",
    "Functional",
    "Hooks",
    "Outputs",
    "Problem",
    "Reversible",
]
