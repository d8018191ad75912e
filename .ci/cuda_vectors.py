"""Whether the CUDA kernels move 16 bytes in one access: `cuda_vectors.py librevdeq_cuda.so`.

Every kernel comes in a form for aligned tensors and in one for all others, an element at a time. So
on each architecture at least half of its instances must load or store 16 bytes at once. The machine
code is read with the cuobjdump that the triton package brings.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import triton
from cuda_report import readable

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def wide_accesses(sass: str) -> dict[tuple[str, str], int]:
    """(architecture, mangled name) of every function -> its number of 16-byte loads and stores."""
    counts: dict[tuple[str, str], int] = {}
    arch = name = ""
    for line in sass.splitlines():
        if found := re.search(r"code for (sm_\w+)", line):
            arch = found[1]
        elif found := re.search(r"Function : (\S+)", line):
            name = found[1]
            counts[arch, name] = 0
        elif re.search(r"\b(LDG|STG)\.E\S*\.128", line):
            counts[arch, name] += 1
    return counts


def by_kernel(counts: dict[tuple[str, str], int]) -> dict[tuple[str, str], list[bool]]:
    """(architecture, kernel without its template arguments) -> for each instance, is it wide?"""
    names = readable([name for _, name in counts])
    wide = defaultdict(list)
    for ((arch, _), count), name in zip(counts.items(), names, strict=True):
        wide[arch, name.split("<")[0]].append(count > 0)
    return wide


def main(library: str) -> int:
    sass = subprocess.run(
        [str(TOOLS / "cuobjdump"), "-sass", library], capture_output=True, text=True, check=True
    ).stdout
    kernels = by_kernel(wide_accesses(sass))
    narrow = [key for key, wide in kernels.items() if 2 * sum(wide) < len(wide)]
    for (arch, name), wide in kernels.items():
        print(f"{arch:8} {name}: {sum(wide)} of {len(wide)} instances move 16 bytes at once")
    for arch, name in narrow:
        print(f"cuda_vectors: {arch} {name}: fewer than half are vectorised", file=sys.stderr)
    if not kernels:
        print(f"cuda_vectors: no kernel was found in {library}", file=sys.stderr)
    return 0 if kernels and not narrow else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
