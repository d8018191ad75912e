"""Decide whether to build the compiled extension."""

from __future__ import annotations

import os
import platform

from setuptools.errors import CompileError


def builds_cpp() -> bool:
    """Whether the compiled extension is built; without it, the package is pure Python.

    Set by REVDEQ_BUILD_CPP: 1, 0, or auto, which builds on Linux only, because the C++ code was
    never compiled elsewhere. Without the extension, ops run in plain PyTorch, and on GPUs with
    Triton.
    """
    wanted = os.environ.get("REVDEQ_BUILD_CPP") or "auto"
    if wanted not in ("auto", "0", "1"):
        raise CompileError(f"REVDEQ_BUILD_CPP: expected auto, 0 or 1, got {wanted!r}")
    if wanted != "0" and (wanted == "1" or platform.system() == "Linux"):
        return True
    if os.environ.get("REVDEQ_BUILD_CUDA") == "1":
        raise CompileError(
            "REVDEQ_BUILD_CUDA=1 requires the compiled extension, which contains the ops' schemas, "
            f"but REVDEQ_BUILD_CPP={wanted} on {platform.system()} skips it; set REVDEQ_BUILD_CPP=1"
        )
    return False
