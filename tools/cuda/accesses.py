"""How a kernel accesses its tensors: widths, and loads in flight at once, from machine code."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tools.cuda.machine_code import Instruction, blocks

WIDEST = 16
# Base and offset of an operand such as desc[UR4][R2.64+UR6+0x80].
ADDRESS = re.compile(r"\[([^\[\]]*?)(?:\+?(-?0x[0-9a-f]+))?\](?!\[)")


class InFlight(NamedTuple):
    """Loads of a thread that are in flight at once, and their total bytes."""

    loads: int
    bytes: int


NONE = InFlight(0, 0)


@dataclass
class Accesses:
    """The loads from and stores to global memory of one instance of a kernel."""

    loads: Counter[int] = field(default_factory=Counter)  # by their bytes
    stores: Counter[int] = field(default_factory=Counter)
    split: list[str] = field(default_factory=list)  # pairs of neighbors, which could be one access
    in_flight: InFlight = NONE

    def wide(self) -> tuple[bool, bool]:
        """Whether it loads, and whether it stores, 16 bytes in one access."""
        return any(n >= WIDEST for n in self.loads), any(n >= WIDEST for n in self.stores)


def accesses(code: Sequence[Instruction]) -> Accesses:
    """The accesses of these instructions."""
    found = Accesses()
    for block in blocks(code):
        for one in block:
            if one.kind == "LDG":
                found.loads[one.bytes] += 1
            elif one.kind == "STG":
                found.stores[one.bytes] += 1
        found.split += split(block)
        found.in_flight = max(found.in_flight, in_flight(block))
    return found


def in_flight(block: Sequence[Instruction]) -> InFlight:
    """The largest number of loads in flight at once in a run of instructions.

    A load is in flight from its issue until its register is used; by then, earlier loads have
    completed too. A store also ends the count, because later loads may have to wait for it.
    """
    most = NONE
    under_way: list[Instruction] = []
    for one in block:
        named = one.registers() | (one.written() if one.kind == "LDG" else set())
        used = [k for k, load in enumerate(under_way) if load.written() & named]
        if used:
            del under_way[: used[-1] + 1]
        if one.kind == "LDG":
            under_way.append(one)
            most = max(most, InFlight(len(under_way), sum(load.bytes for load in under_way)))
        elif one.kind == "STG":
            under_way.clear()
    return most


def split(block: Sequence[Instruction]) -> list[str]:
    """The accesses that could be merged with an adjacent access of the same width before them."""
    found = []
    former: dict[tuple[str, int, str], set[int]] = {}  # kind, bytes, base -> offsets
    for one in block:
        where = ADDRESS.search(one.operands)
        if one.kind in ("LDG", "STG") and where and one.bytes < WIDEST:
            offsets = former.setdefault((one.kind, one.bytes, where[1]), set())
            offset = int(where[2] or "0", 16)
            if {offset - one.bytes, offset + one.bytes} & offsets:
                found.append(f"{one.name} {one.operands}")
            offsets.add(offset)
        if one.kind != "STG" and (written := re.match(r"(R\d+)\b", one.operands)):
            base = re.compile(rf"\b{written[1]}\b")
            former = {key: value for key, value in former.items() if not base.search(key[2])}
    return found
