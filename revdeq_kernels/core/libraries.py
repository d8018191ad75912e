"""The compiled libraries: their location, loading, and build information.

They are plain shared libraries that do not use Python, so one build serves every Python version:
torch loads them, and ctypes calls the functions that are not ops.
"""

from __future__ import annotations

import ctypes
import sys
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


def hidden() -> Path | None:
    """The folder of an installed package with compiled libraries, behind this one in sys.path.

    Python started in a clone imports the clone's package instead of the installed one.
    """
    folders = [Path(entry, CPU.parent.name).absolute() for entry in sys.path]
    own = CPU.parent.resolve()
    found = (f for f in folders if (f / CPU.name).exists() and f.resolve() != own)
    return next(found, None)


def build_info() -> dict[str, str]:
    """Versions and settings of the build; OSError if there are no compiled libraries."""
    facts = _text("revdeq_build_info").splitlines()
    return dict(fact.split("=", 1) for fact in facts)


def cpu_instruction_set() -> str:
    """The widest instruction set of this CPU for which the kernels are compiled."""
    return _text("revdeq_cpu_instruction_set")


def cpu_bfloat16_cell() -> str:
    """What the equilibrium cell uses of this CPU if W is in bfloat16: "AMX", or as above."""
    return _text("revdeq_cpu_bfloat16_cell")


@cache
def _text(function: str) -> str:
    """Call a function of the library that returns text with static storage duration."""
    call = getattr(ctypes.CDLL(str(CPU)), function)
    call.argtypes, call.restype = (), ctypes.c_char_p
    return call().decode()
