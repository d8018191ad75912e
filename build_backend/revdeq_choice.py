"""Whether there is anything to compile."""

from __future__ import annotations

import os
import platform

from setuptools.errors import CompileError


def builds_cpp() -> bool:
    """Whether the compiled extension is built; without it the package is Python alone.

    REVDEQ_BUILD_CPP says: 1, 0, or auto, which builds on Linux. Elsewhere the C++ code has not been
    compiled yet; the ops run there in plain PyTorch, and on GPUs by Triton.
    """
    wanted = os.environ.get("REVDEQ_BUILD_CPP") or "auto"
    if wanted not in ("auto", "0", "1"):
        raise CompileError(f"REVDEQ_BUILD_CPP: expected auto, 0 or 1, got {wanted!r}")
    if wanted != "0" and (wanted == "1" or platform.system() == "Linux"):
        return True
    if os.environ.get("REVDEQ_BUILD_CUDA") == "1":
        raise CompileError(
            "REVDEQ_BUILD_CUDA=1, but the compiled extension, which holds the ops' schemas, is not "
            f"built (REVDEQ_BUILD_CPP={wanted} on {platform.system()}): set REVDEQ_BUILD_CPP=1"
        )
    return False
