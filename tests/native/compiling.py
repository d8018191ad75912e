"""Compile C++ of the tests with the flags of the package, cached by source and headers.

What the package's own build compiled alike is not compiled again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
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

BUILT = ROOT / "build" / str(sys.implementation.cache_tag)
"""Where setup.py builds the libraries."""


def run_compiler(*arguments: str) -> str:
    command = [CXX, *COMMON, *CXX_FLAGS, "-Werror", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def built(source: Path) -> Path | None:
    """The object of `source` in the package's build, if the same would be compiled now.

    That is: without a warning, by the same compiler with the same flags, from the same files with
    the same contents. ``revdeq_ninja.py`` notes them with each object.
    """
    found = BUILT / f"{source.parent.name}.{source.name}.o"
    made, log = found.with_name(f"{found.name}.made"), found.with_name(f"{found.name}.log")
    if not (found.exists() and made.exists() and log.exists()) or log.read_text():
        return None
    noted = made.read_text().splitlines()
    rows = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in noted]
    command = [line for line, row in zip(noted, rows, strict=True) if row is None]
    own = [line for line in command if not line.startswith("-isystem")]  # torch's, not read here
    if own != [CXX, *COMMON, *CXX_FLAGS, *run_compiler("--version").splitlines()]:
        return None
    files = shlex.split(run_compiler("-M", str(source)).partition(":")[2].replace("\\\n", " "))
    now = {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}
    return found if now == {row[2]: row[1] for row in rows if row} else None


def compiled(folder: str, source: Path, flags: tuple[str, ...]) -> Path:
    """The object of `source`; taken from an earlier run if its compilation read the same files."""
    if not flags and (found := built(source)):
        return found
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


def link_and_run(
    program: Path, *objects: Path, flags: tuple[str, ...] = (), arguments: tuple[str, ...] = ()
) -> str:
    run_compiler(*flags, *map(str, objects), "-o", str(program))
    run = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout
