"""Find the torch to build against, even from within pip's build isolation."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

from setuptools.errors import CompileError

FIND = "import importlib.util as u; spec = u.find_spec('torch'); print(spec.origin if spec else '')"


def torch_folder() -> Path | None:
    """The folder of the user's torch, or None; torch is not imported here."""
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    # pip isolates a build with a sitecustomize.py on PYTHONPATH that removes the environment's
    # packages from sys.path. The same interpreter without it finds them, whether they are in a
    # virtual environment, in the system's or user's folder, or in one that a .pth file names.
    isolating = ("PYTHONPATH", "PYTHONNOUSERSITE")
    environment = {name: value for name, value in os.environ.items() if name not in isolating}
    found = subprocess.run(
        [sys.executable, "-c", FIND],
        env=environment,
        cwd=sys.prefix,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.strip()
    return Path(found).parent if found else None


def find_torch() -> tuple[Path, str]:
    """The folder and version of the torch to build against."""
    remedy = "`pip install 'torch>=2.11'`, then `pip install --no-build-isolation .`"
    folder = torch_folder()
    if folder is None:
        raise CompileError(f"the build needs torch, which is not installed: {remedy}")
    found = re.search(r"__version__ = '((\d+)\.(\d+).*)'", (folder / "version.py").read_text())
    if found is None or (int(found[2]), int(found[3])) < (2, 11):
        got = found[1] if found else "of unknown version"
        raise CompileError(f"expected torch 2.11 or newer, got torch {got} in {folder}: {remedy}")
    return folder, found[1]
