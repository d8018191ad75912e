"""The machine code of a CUDA library, parsed into instructions."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;")
# Instructions whose last operand is the address of another instruction.
JUMPS = frozenset({"BRA", "BRX", "JMP", "CALL", "BSSY", "WARPSYNC"})
# After these, an instruction other than the next may follow.
ENDS = frozenset({"BRA", "BRX", "JMP", "CALL", "RET", "EXIT", "BSYNC"})


@dataclass(frozen=True)
class Instruction:
    """One instruction: `LDG.E.128 R4, desc[UR4][R2.64+0x80]` at `address`, under `guard` or ""."""

    address: int
    guard: str
    name: str  # LDG.E.128
    operands: str

    @property
    def kind(self) -> str:
        """The name without modifiers: LDG."""
        return self.name.split(".", maxsplit=1)[0]

    @property
    def bytes(self) -> int:
        """The bytes that one thread moves in a load or store."""
        found = re.search(r"\.(?:[US](8|16)|(64|128|256))(?:\.|$)", self.name)
        return int(found[1] or found[2]) // 8 if found else 4

    def registers(self) -> set[int]:
        """The registers that are read or written; of a vector, the first."""
        return {int(number) for number in re.findall(r"\bR(\d+)\b", self.operands)}

    def written(self) -> set[int]:
        """The registers that a load writes."""
        targets = self.operands.split("desc[")[0].split("[")[0]
        firsts = [int(number) for number in re.findall(r"\bR(\d+)\b", targets)]
        each = max(self.bytes // 4 // max(len(firsts), 1), 1)
        return {first + k for first in firsts for k in range(each)}


def disassemble(library: str) -> str:
    """The machine code of a library, from the cuobjdump that is part of the triton package."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [str(tool), "-sass", library]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def functions(sass: str) -> dict[tuple[str, str], list[Instruction]]:
    """(architecture, mangled name) of every function -> its instructions."""
    found: dict[tuple[str, str], list[Instruction]] = {}
    arch = ""
    code: list[Instruction] = []
    for line in sass.splitlines():
        if match := LINE.match(line):
            code.append(Instruction(int(match[1], 16), match[2] or "", match[3], match[4]))
        elif match := re.search(r"code for (sm_\w+)", line):
            arch = match[1]
        elif match := re.search(r"Function : (\S+)", line):
            code = found[arch, match[1]] = []
    return found


def blocks(code: Iterable[Instruction]) -> Iterator[list[Instruction]]:
    """The instructions in basic blocks: entered only at the first, left only at the last."""
    code = list(code)
    named = (re.search(r"0x([0-9a-f]+)$", one.operands) for one in code if one.kind in JUMPS)
    targets = {int(match[1], 16) for match in named if match}
    block: list[Instruction] = []
    for one in code:
        if one.address in targets and block:
            yield block
            block = []
        block.append(one)
        if one.kind in ENDS:
            yield block
            block = []
    if block:
        yield block
