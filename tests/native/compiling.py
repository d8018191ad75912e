"""Compile C++ of the tests with the flags of the package, cached by source and headers."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from setup import COMMON, CXX_FLAGS
from tests import ROOT

NATIVE = ROOT / "tests" / "native"
CXX = os.environ.get("CXX") or "g++"
needs_compiler = pytest.mark.skipif(shutil.which(CXX) is None, reason=f"no C++ compiler ({CXX})")

KEPT = ROOT / "build" / "tests" / "native"
"""Objects of earlier runs."""


def run_compiler(*arguments: str) -> str:
    command = [CXX, *COMMON, *CXX_FLAGS, "-Werror", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def compiled(folder: str, source: Path, flags: tuple[str, ...]) -> Path:
    """The object of `source`; taken from an earlier run if its compilation read the same files."""
    read = [run_compiler("--version"), *flags, run_compiler(*flags, "-E", str(source))]
    key = hashlib.sha256("\n".join([*COMMON, *CXX_FLAGS, *read]).encode()).hexdigest()[:16]
    kept = KEPT / folder / f"{source.stem}-{key}.o"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        for former in kept.parent.glob(f"{source.stem}-*.o"):
            former.unlink(missing_ok=True)
        part = kept.with_suffix(f".{os.getpid()}")
        run_compiler(*flags, "-c", str(source), "-o", str(part))
        part.replace(kept)
    return kept


def compile_all(folder: str, *sources: Path, flags: tuple[str, ...] = ()) -> list[Path]:
    """The objects of `sources`, compiled in parallel."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda source: compiled(folder, source, flags), sources))


def link_and_run(program: Path, *objects: Path, flags: tuple[str, ...] = ()) -> str:
    run_compiler(*flags, *map(str, objects), "-o", str(program))
    run = subprocess.run([program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout
