"""The signatures with which the Triton kernels are launched, to compile them without a GPU.

Imports only triton, not torch, so that another compiler version can be tried by itself. With one
leaf, every kernel is listed with every combination of types (passes: a selection that covers each
path of the code). There is one combination each with several leaves, with sizes that are not
multiples of 16, and with leaves of which some have 2^31 elements.
``tests/ptx/triton_signatures.py`` runs the signatures of the ops.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import cell, exact_states, float_states
from .specialisations import Specialisation


def signatures() -> Iterator[Specialisation]:
    """Yields (label, kernel, signature, keywords) for each specialization.

    A signature maps parameters to types in the form of triton.compiler.ASTSource, or to tuples of
    types; "i32:16" is an i32 that is a multiple of 16, and "1" is the integer 1. Keywords are the
    kernel's constants and the compiler's options.
    """
    yield from float_states.signatures()
    yield from exact_states.signatures()
    yield from cell.signatures()


ARCHITECTURES = cell.architectures()
"""The signatures that are only launched on some NVIDIA GPUs, by label: the GPUs."""

PROGRAMS = cell.programs()
"""For the equilibrium cell's kernels, by label: programs per multiprocessor in a launch."""
