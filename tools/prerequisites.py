"""What `make` needs of the system, asked for by name before anything large is downloaded.

`python3 tools/prerequisites.py VENV` prints what is missing with the command that installs it, and
exits 1. It runs in the system's Python, so it imports the standard library alone.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST = (3, 10)
NEEDED_GB = 2.5
"""Disk space of a new environment with the CPU build of torch; the CUDA build takes more."""


def missing_packages(headers: Path, compiler: str) -> dict[str, str]:
    """Debian packages that are missing, and what needs each."""
    found = {}
    # Debian's packages of another Python than its default one carry its version.
    default = Path("/usr/bin/python3").resolve() == Path(sys.executable).resolve()
    python = "python3" if default else f"python3.{sys.version_info.minor}"
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        found[f"{python}-venv"] = "to create the environment"
    if os.environ.get("REVDEQ_BUILD_CPP") == "0":  # nothing is compiled
        return found
    if not (headers / "Python.h").exists():
        found[f"{python}-dev"] = "Python.h, which torch.compile and some tests compile against"
    if shutil.which((shlex.split(compiler) or ["g++"])[0]) is None:
        found["g++"] = f"the C++ compiler ({compiler}) of the kernels and of torch.compile"
    return found


def problems(root: Path, venv: Path, headers: Path, compiler: str) -> list[str]:
    """What keeps `make` from working, each with the way out; empty where nothing does."""
    if sys.version_info < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        return [
            f"expected Python {wanted} or later, got {sys.version.split()[0]} ({sys.executable})"
        ]
    found = []
    if not os.access(root, os.W_OK):
        found.append(f"{root} is read-only, and the build writes into it: copy the tree elsewhere")
    if any(character.isspace() for character in str(venv)):
        found.append(
            f"the path of the environment, {str(venv)!r}, contains a space, with which "
            "torch.compile's linker fails: move the clone, or choose a folder: `make VENV=/path`"
        )
    if missing := missing_packages(headers, compiler):
        listed = "; ".join(f"{package} ({what})" for package, what in missing.items())
        found.append(
            f"packages are missing: {listed}. On Debian and Ubuntu: "
            f"{as_root('apt update')} && {as_root('apt install ' + ' '.join(missing))}"
        )
    if not venv.exists() and root.exists():
        free = shutil.disk_usage(nearest(venv)).free / 1e9
        if free < NEEDED_GB:
            found.append(
                f"{venv} takes about {NEEDED_GB} GB with the CPU build of torch, more with CUDA; "
                f"{free:.1f} GB are free there: `make VENV=/path` chooses another folder"
            )
    return found


def as_root(command: str) -> str:
    """The command as this user gives it: root of a container has no sudo, and needs none."""
    return command if hasattr(os, "geteuid") and os.geteuid() == 0 else f"sudo {command}"


def nearest(path: Path) -> Path:
    """The path, or the first of its parents that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def main(venv: str) -> int:
    """Print the problems; 1 where there are some."""
    headers = Path(sysconfig.get_path("include"))
    folder = Path(os.path.abspath(venv))  # noqa: PTH100 - as it is named, links not followed
    found = problems(ROOT, folder, headers, os.environ.get("CXX") or "g++")
    for problem in found:
        print(f"make: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
