"""The adjoints: methods of computing a solve's gradients, and the code they share.

To write your own, subclass ``Adjoint`` or one of the adjoints here, and pass an instance:
``solve(..., adjoint=Mine())``.
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
