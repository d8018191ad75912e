"""The compiled libraries: their location, loading, and build information.

They are plain shared libraries that do not use Python, so one build serves every Python version:
torch loads them, and ctypes calls the functions that are not ops.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch

CPU = Path(__file__).parent.with_name("librevdeq_cpu.so")
"""The schemas of all ops, and the CPU kernels."""

CUDA = CPU.with_name("librevdeq_cuda.so")
"""The CUDA kernels; requires the schemas."""


def load(library: Path) -> str | None:
    """Load a library, which registers its ops and kernels; returns the reason if that fails."""
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return str(error.__cause__ or error)  # torch's own message only names the file
    return None


def build_info() -> dict[str, str]:
    """Versions and settings of the build; OSError if there are no compiled libraries."""
    facts = _text("revdeq_build_info").splitlines()
    return dict(fact.split("=", 1) for fact in facts)


def cpu_instruction_set() -> str:
    """The widest instruction set of this CPU for which the kernels are compiled."""
    return _text("revdeq_cpu_instruction_set")


@cache
def _text(function: str) -> str:
    """Call a function of the library that returns text with static storage duration."""
    call = getattr(ctypes.CDLL(str(CPU)), function)
    call.argtypes, call.restype = (), ctypes.c_char_p
    return call().decode()
