"""Check that the CUDA kernels access whole vectors and load ahead: `sass.py librevdeq_cuda.so`.

Every kernel has one version for aligned tensors and one for all others, element by element. For
each family, MOVES lists what an instance must contain according to its types: a load or store of
every tensor's vector, of 16 bytes or the vector's size, and a number of loads in flight at once.
Adjacent accesses that could be merged are an error everywhere.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tools.cuda.accesses import WIDEST, Accesses, accesses
from tools.cuda.machine_code import disassemble, functions
from tools.cuda.ptxas import family, readable

SIZES = {"double": 8, "float": 4, "bfloat16": 2, "float16": 2}
LANES = 4  # per thread of an exact kernel
AHEAD = 8  # loads that an exact kernel has in flight


@dataclass(frozen=True)
class Moves:
    """The minimum that an instance must contain."""

    loads: Sequence[int] = ()  # bytes of each tensor's vector
    stores: Sequence[int] = ()
    in_flight: int = 0  # loads in flight at once

    def __add__(self, other: Moves) -> Moves:
        """The minimum for an instance that does either one in a block of threads."""
        most = max(self.in_flight, other.in_flight)
        return Moves((*self.loads, *other.loads), (*self.stores, *other.stores), most)


def float_step(state: str, f: str) -> Moves:
    """A half step or its inverse; the cast has the type of f, or is float32."""
    lanes = WIDEST // SIZES[state]
    narrow, wide = lanes * SIZES[f], lanes * SIZES["float"]
    return Moves((WIDEST, narrow), (WIDEST, narrow, wide), in_flight=2)


def adjoint(grad: str, f: str) -> Moves:
    """The vjp has the type of f or of the gradient; the third type is the other gradient's."""
    narrow = WIDEST // SIZES[grad] * SIZES[f]
    return Moves((WIDEST, WIDEST, WIDEST, narrow), (WIDEST, narrow), in_flight=3)


def exact(direction: str, digits: str, f: str) -> Moves:
    """Four lanes of several groups: the state, f and its cast, and one byte of digits per lane."""
    blocks = -(-4 // int(digits))
    groups = blocks * int(digits)
    ahead = 4 if groups == 8 else groups
    narrow = LANES * SIZES[f]
    loads, stores = ahead * [WIDEST, narrow], ahead * [WIDEST, narrow, WIDEST]
    (stores if direction == UPDATE else loads).extend(blocks * [LANES])
    return Moves(loads, stores, in_flight=AHEAD)


UPDATE, INVERT = "Direction 0", "Direction 1"
# By kernel family, as in CEILINGS of ptxas.py: a function of the template arguments.
MOVES: dict[str, Callable[..., Moves]] = {
    "half_step_kernel": lambda _, state, f, __: float_step(state, f),
    "channel_step_kernel": lambda _, state, f, __: float_step(state, f),
    "adjoint_kernel": adjoint,
    "pass_kernel": lambda state, f, _, grad: float_step(state, f) + adjoint(grad, f),
    "exact_kernel": lambda direction, _, digits, f: exact(direction, digits, f),
    "exact_pass_kernel": lambda _, digits, f: exact(INVERT, digits, f) + adjoint("float", f),
    "quantize_kernel": lambda x: Moves((LANES * SIZES[x],), (WIDEST,), in_flight=1),
    "dequantize_kernel": lambda x: Moves((WIDEST,), (LANES * SIZES[x],), in_flight=1),
    "residual_kernel": lambda *_: Moves(in_flight=16),
    "norms_kernel": lambda: Moves(in_flight=4),
}
# Where adjacent accesses need not be merged, and why.
NARROW = {
    "norms_kernel": "a few sums for each leaf",
    "residual_kernel": "the order of summation puts neighbors into different threads",
}
PLACE = "MOVES in tools/cuda/sass.py"


def arguments(name: str) -> list[str]:
    """The template arguments of a readable name: ["Direction 0", "float", "float", "float"]."""
    found = re.search(r"<(.*)>$", name)
    return [part.strip().split("::")[-1] for part in found[1].split(",")] if found else []


def in_pieces(sizes: Iterable[int]) -> Counter[int]:
    """The accesses, by size in bytes, that move vectors of these sizes."""
    return Counter(min(size, WIDEST) for size in sizes for _ in range(-(-size // WIDEST)))


def lacking(asked: Counter[int], got: Counter[int]) -> Counter[int]:
    """The required accesses that are missing; an access of 32 bytes counts as two of 16."""
    there = Counter(got)
    there[WIDEST] += 2 * there.pop(2 * WIDEST, 0)
    return asked - there


def listed(sizes: Counter[int]) -> str:
    """The accesses by size in bytes, as text: "2 of 16, 1 of 8"."""
    return ", ".join(f"{count} of {size}" for size, count in sorted(sizes.items(), reverse=True))


def complaints(got: Accesses, asked: Moves, *, whole: bool = True) -> list[str]:
    """The problems of an instance; `whole`: adjacent accesses must be merged."""
    found = []
    for what, sizes, there in [
        ("loads", asked.loads, got.loads),
        ("stores", asked.stores, got.stores),
    ]:
        if lacking(in_pieces(sizes), there):
            wanted = listed(in_pieces(sizes))
            found.append(f"expected {what} of {wanted} bytes or more, got {listed(there)}")
    if got.split and whole:
        found.append(
            f"expected accesses of whole vectors, got {len(got.split)} adjacent to another, "
            f"such as {got.split[0]}"
        )
    if got.in_flight.loads < asked.in_flight:
        found.append(
            f"expected {asked.in_flight} loads in flight at once, before one is used or anything "
            f"is stored, got {got.in_flight.loads}"
        )
    return found


def problems(
    instances: Mapping[tuple[str, str], Accesses], moves: Mapping[str, Callable[..., Moves]]
) -> list[str]:
    """The problems of the instances, by architecture and readable name, and of `moves`."""
    found = [] if instances else ["no kernel was found"]
    for (arch, name), got in instances.items():
        if (asked := moves.get(family(name))) is None:
            found.append(f"{arch} {name}: expected an entry in {PLACE}")
            continue
        wrong = complaints(got, asked(*arguments(name)), whole=family(name) not in NARROW)
        found += [f"{arch} {name}: {what}" for what in wrong]
    known = {family(name) for _, name in instances}
    stale = [name for name in moves if instances and name not in known]
    return found + [
        f"{name}: no such kernel in the library; remove it from {PLACE}" for name in stale
    ]


def instances_of(sass: str) -> dict[tuple[str, str], Accesses]:
    """(architecture, readable name) of every kernel -> its accesses."""
    code = functions(sass)
    names = readable([name for _, name in code])
    return {
        (arch, name): accesses(one)
        for ((arch, _), one), name in zip(code.items(), names, strict=True)
    }


def summary(instances: Mapping[tuple[str, str], Accesses]) -> list[str]:
    """One line per family and architecture."""
    groups: dict[tuple[str, str], list[Accesses]] = {}
    for (arch, name), got in instances.items():
        groups.setdefault((arch, family(name)), []).append(got)
    return [
        f"{arch:8} {name}: of {len(group)} instances {sum(one.wide()[0] for one in group)} load "
        f"and {sum(one.wide()[1] for one in group)} store 16 bytes at once; "
        f"at least {min(one.in_flight for one in group).loads} loads in flight"
        for (arch, name), group in groups.items()
    ]


def main(library: str) -> int:
    instances = instances_of(disassemble(library))
    print("\n".join(summary(instances)))
    found = problems(instances, MOVES)
    for problem in found:
        print(f"sass: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
