"""The signatures with which the Triton kernels are launched, for compiling them without a GPU.

Imports triton only, not torch, so that a compiler of another version can be tried by itself. With
one leaf, every kernel is here with every combination of types, passes with a choice that takes each
path of the code; with more leaves, sizes that are not multiples of 16, and leaves of which some
have 2^31 elements, one combination each. ``tests/ptx/triton_signatures.py`` runs what is listed of
the ops.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import cell, exact_states, float_states
from .specialisations import Specialisation


def signatures() -> Iterator[Specialisation]:
    """Yields (label, kernel, signature, keywords) for each specialisation.

    A signature maps parameters to types as triton.compiler.ASTSource takes them, or to a tuple of
    them; "i32:16" is an i32 that is a multiple of 16, and "1" is the integer 1. Keywords are the
    kernel's constants and the compiler's options.
    """
    yield from float_states.signatures()
    yield from exact_states.signatures()
    yield from cell.signatures()


ARCHITECTURES = cell.architectures()
"""The signatures that are launched on some NVIDIA GPUs only, by label, and on which."""

PROGRAMS = cell.programs()
"""Of the equilibrium cell's kernels, by label: how many programs a launch starts on a processor."""
