"""The C++ compiler: asked for before torch is downloaded, and told apart from other failures."""

from __future__ import annotations

import os
import shlex
import subprocess

from setuptools.errors import CompileError

# Features of C++20 that the sources use; clang 14 has them, g++ 10 does not say so with its flags.
PROBE = "#include <span>\n#include <bit>\nstatic_assert(__cplusplus > 201703L);\n"
OTHERWISE = (
    "CXX names another; REVDEQ_BUILD_CPP=0 installs Python alone, with the ops in plain PyTorch "
    "and Triton"
)


def compiler() -> str:
    """The command: CXX, or g++."""
    return os.environ.get("CXX") or "g++"


def check_compiler() -> None:
    """CompileError, with the way out, where there is no compiler of C++20."""
    name = compiler()
    command = [*shlex.split(name), "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    try:
        done = subprocess.run(command, input=PROBE, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CompileError(
            f"the kernels need a C++ compiler, and {name!r} cannot be run ({error.strerror}): "
            f"`apt install g++` on Debian and Ubuntu. {OTHERWISE}"
        ) from None
    if done.returncode:
        raise CompileError(
            f"the kernels need C++20 (g++ 11 or newer, clang 14 or newer), which {name!r} does not "
            f"compile: {(done.stderr.strip() or 'no message').splitlines()[0]}. {OTHERWISE}"
        )
