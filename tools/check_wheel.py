"""Check the tag and the files of a wheel: `check_wheel.py WHEEL ARCHS`.

ARCHS: "" means without CUDA, "pure" without any compiled code.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def expected_sources() -> set[str]:
    """The files of the tree that belong into a wheel."""
    found = set()
    for folder in (ROOT, ROOT / "python"):
        for package in ("revdeq_kernels", "torch_revdeq"):
            for pattern in ("*.py", "py.typed"):
                paths = (folder / package).rglob(pattern)
                found |= {path.relative_to(folder).as_posix() for path in paths}
    return found


def main(wheel: str, archs: str) -> None:
    listed = zipfile.ZipFile(wheel).namelist()
    names = {name for name in listed if ".dist-info/" not in name and not name.endswith("/")}
    libraries = {name for name in names if name.endswith(".so")}
    kinds = {name.split("/")[-1].split(".")[0] for name in libraries}
    problems = [f"lacks {name}" for name in sorted(expected_sources() - names)]
    problems += [f"has {name}" for name in sorted(names - libraries - expected_sources())]
    libraries_of = {"pure": set(), "": {"librevdeq_cpu"}}
    if kinds != libraries_of.get(archs, {"librevdeq_cpu", "librevdeq_cuda"}):
        problems.append(f"has the libraries {sorted(libraries)}")
    if "-py3-none-" not in Path(wheel).name:
        problems.append("is not for every Python")
    if problems:
        sys.exit(f"check_wheel: {Path(wheel).name} " + "; ".join(problems))
    print(f"{Path(wheel).name}: {len(names)} files, as expected")


if __name__ == "__main__":
    main(*sys.argv[1:])
