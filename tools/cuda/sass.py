"""Whether the CUDA kernels move 16 bytes in one access: `sass.py librevdeq_cuda.so`.

Every kernel comes in a form for aligned tensors and in one for all others, an element at a time. So
on each architecture at least half of its instances must load and store 16 bytes at once; EXEMPT
lists the kernels of which less is asked, and why. The machine code is read with the cuobjdump that
the triton package brings.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.cuda.ptxas import family, readable


@dataclass(frozen=True)
class Exemption:
    """Which accesses of a kernel still have to be of 16 bytes, and why not the others."""

    reason: str
    loads: bool = False
    stores: bool = False


# By kernel family, as in CEILINGS of ptxas.py.
EXEMPT = {
    "dequantize_kernel": Exemption(
        "four numbers per thread: 16 bytes of int32 to load, 8 to store of a 16-bit x", loads=True
    ),
    "norms_kernel": Exemption("a few sums for each leaf"),
    "residual_kernel": Exemption("the order of the sums puts neighbours into different threads"),
    "quantize_kernel": Exemption(
        "four numbers per thread: 8 bytes to load of a 16-bit x, 16 of int32 to store", stores=True
    ),
}
PLACE = "EXEMPT in tools/cuda/sass.py"
BOTH = Exemption("", loads=True, stores=True)

# An access of 16 bytes or more to global memory: LDG.E.128, STG.E.128.STRONG.GPU, LDG.E.ENL2.256.
WIDE = re.compile(r"\b(LDG|STG)\.E[\w.]*\.(?:128|256)\b")


@dataclass
class Accesses:
    """How many loads and stores of 16 bytes or more one instance of a kernel holds."""

    loads: int = 0
    stores: int = 0


def disassemble(library: str) -> str:
    """The machine code of a library, as text."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [str(tool), "-sass", library]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wide_accesses(sass: str) -> dict[tuple[str, str], Accesses]:
    """(architecture, mangled name) of every function -> its accesses of 16 bytes."""
    counts: dict[tuple[str, str], Accesses] = {}
    arch = name = ""
    for line in sass.splitlines():
        if found := re.search(r"code for (sm_\w+)", line):
            arch = found[1]
        elif found := re.search(r"Function : (\S+)", line):
            name = found[1]
            counts[arch, name] = Accesses()
        elif found := WIDE.search(line):
            if found[1] == "LDG":
                counts[arch, name].loads += 1
            else:
                counts[arch, name].stores += 1
    return counts


def by_kernel(counts: dict[tuple[str, str], Accesses]) -> dict[tuple[str, str], list[Accesses]]:
    """(architecture, kernel family) -> the accesses of each instance."""
    names = readable([name for _, name in counts])
    kernels: dict[tuple[str, str], list[Accesses]] = {}
    for ((arch, _), accesses), name in zip(counts.items(), names, strict=True):
        kernels.setdefault((arch, family(name)), []).append(accesses)
    return kernels


def problems(
    kernels: Mapping[tuple[str, str], list[Accesses]], exempt: Mapping[str, Exemption]
) -> list[str]:
    """Kernels that are not vectorised as they should be, and exemptions of kernels not there."""
    found = [] if kernels else ["no kernel was found"]
    for (arch, name), instances in kernels.items():
        asked = exempt.get(name, BOTH)
        loads, stores = wide_instances(instances)
        counts = {"loads": loads} if asked.loads else {}
        counts |= {"stores": stores} if asked.stores else {}
        if any(2 * count < len(instances) for count in counts.values()):
            got = " and ".join(f"{what} in {count}" for what, count in counts.items())
            found.append(
                f"{arch} {name}: expected {' and '.join(counts)} of 16 bytes in at least half of "
                f"its {len(instances)} instances, got {got}; move vectors (csrc/cuda/bodies.h), or "
                f"give the reason why not: {PLACE}"
            )
    known = {name for _, name in kernels}
    stale = [name for name in exempt if kernels and name not in known]
    return found + [
        f"{name}: no such kernel in the library; remove it from {PLACE}" for name in stale
    ]


def wide_instances(instances: list[Accesses]) -> tuple[int, int]:
    """How many instances load 16 bytes at once, and how many store them."""
    return sum(one.loads > 0 for one in instances), sum(one.stores > 0 for one in instances)


def main(library: str) -> int:
    kernels = by_kernel(wide_accesses(disassemble(library)))
    for (arch, name), instances in kernels.items():
        loads, stores = wide_instances(instances)
        print(
            f"{arch:8} {name}: of {len(instances)} instances {loads} load and {stores} store "
            "16 bytes at once" + (", part of them exempt" if name in EXEMPT else "")
        )
    found = problems(kernels, EXEMPT)
    for problem in found:
        print(f"sass: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
