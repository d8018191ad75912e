"""setuptools' PEP 517 backend, which requires torch only if none is installed.

pip builds in isolation, without the environment's packages, so a plain backend would have to list
torch as a build requirement: a download of gigabytes, and possibly another torch than the one in
use. Thanks to the stable ABI, any torch from 2.11 on can be built against, so the installed one is
used.
"""

from __future__ import annotations

from typing import Any

from revdeq_choice import builds_cpp
from revdeq_compiler import check_compiler
from revdeq_torch import torch_folder
from setuptools.build_meta import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]


def _torch_requirement() -> list[str]:
    if not builds_cpp():
        print("revdeq-kernels: nothing to compile, the wheel contains only Python", flush=True)
        return []
    check_compiler()  # before the download
    folder = torch_folder()
    if folder is not None:
        print(f"revdeq-kernels: building against {folder}", flush=True)
        return []
    print("revdeq-kernels: torch is not installed, downloading one to build against", flush=True)
    return ["torch>=2.11"]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """torch, where there is none and something is compiled; CompileError without a compiler."""
    return _torch_requirement()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """torch, where there is none and something is compiled; CompileError without a compiler."""
    return _torch_requirement()


def get_requires_for_build_sdist(config_settings: Any = None) -> list[str]:
    """Nothing: a source distribution does not compile anything."""
    return []
