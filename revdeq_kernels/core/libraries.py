"""The compiled libraries: where they are, how they are loaded, what they say of their build.

They are plain shared libraries that call nothing of Python, so that one build serves every Python:
torch opens them, and ctypes calls what is not an op.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch

CPU = Path(__file__).parent.with_name("librevdeq_cpu.so")
"""The schemas of all ops, and the kernels for CPUs."""

CUDA = CPU.with_name("librevdeq_cuda.so")
"""The CUDA kernels; it needs the schemas."""


def load(library: Path) -> str | None:
    """Load a library, which registers what it holds; the reason where it cannot be loaded."""
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return str(error.__cause__ or error)  # torch's own message names the file alone
    return None


def build_info() -> dict[str, str]:
    """Versions and settings that the libraries were built with; OSError where there are none."""
    facts = _text("revdeq_build_info").splitlines()
    return dict(fact.split("=", 1) for fact in facts)


def cpu_instruction_set() -> str:
    """The widest instruction set of this CPU that the kernels are compiled for."""
    return _text("revdeq_cpu_instruction_set")


@cache
def _text(function: str) -> str:
    """What a function of the library returns: text that lives as long as the process."""
    call = getattr(ctypes.CDLL(str(CPU)), function)
    call.argtypes, call.restype = (), ctypes.c_char_p
    return call().decode()
