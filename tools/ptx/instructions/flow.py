"""How a kernel uses registers before and after an instruction, along every path through it.

The registers of an asynchronous instruction (wgmma.mma_async, tcgen05.ld) belong to the hardware
until a wait; those of tcgen05.ld may be read earlier. This is a property of the code, not of a run,
so it is checked once, when the instruction is compiled, on all paths to and from it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from tools.ptx.errors import Fault
from tools.ptx.kernel import Instruction, Kernel


def names(instruction: Instruction) -> set[str]:
    """The registers (and labels) of an instruction, including its guard."""
    found = set(re.findall(r"[%$\w@]+", " ".join(instruction.args)))
    return found | {instruction.guard} if instruction.guard else found


def writes(instruction: Instruction, register: str) -> bool:
    """Whether an instruction writes a register: its first operand, unless that is an address."""
    first = instruction.args[0] if instruction.args else ""
    return not first.startswith("[") and register in re.findall(r"[%$\w@]+", first)


def reads(instruction: Instruction, register: str) -> bool:
    """Whether an instruction reads a register, as a guard or as any operand except the first."""
    if instruction.args and not writes(instruction, register):
        return register in names(instruction)
    words = re.findall(r"[%$\w@]+", " ".join(instruction.args[1:]))
    return register in words or register == instruction.guard


def position(kernel: Kernel, instruction: Instruction) -> int:
    """The position of an instruction in its kernel's code."""
    return next(k for k, other in enumerate(kernel.code) if other is instruction)


def walk(
    kernel: Kernel, start: int, ends: Callable[[Instruction], bool], backward: bool = False
) -> Iterator[int]:
    """The positions that can follow (or precede) `start`, on each path until `ends` is true.

    Includes the position where it is true, and -1 for a path that leaves the kernel.
    """
    edges = _edges(kernel)[backward]
    seen, left = set[int](), list(edges[start])
    while left:
        at = left.pop()
        if at in seen:
            continue
        seen.add(at)
        yield at
        if at >= 0 and not ends(kernel.code[at]):
            left += edges[at]


@lru_cache(maxsize=8)
def _edges(kernel: Kernel) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """The possible successors and predecessors of each instruction; -1 is outside of the kernel."""
    after, before = defaultdict[int, list[int]](list), defaultdict[int, list[int]](list)
    before[0].append(-1)
    for at, instruction in enumerate(kernel.code):
        last = at + 1 == len(kernel.code)
        following = [-1 if last else at + 1]
        if instruction.op[0] == "bra":
            target = kernel.labels[instruction.args[0]]
            target = target if target < len(kernel.code) else -1
            following = [target] + (following if instruction.guard else [])
        elif instruction.op[0] in ("ret", "exit", "trap"):
            following = [-1] + ([at + 1] if instruction.guard and not last else [])
        for target in following:
            after[at].append(target)
            before[target].append(at)
    return after, before


def refuse_use(
    kernel: Kernel,
    instruction: Instruction,
    registers: set[str],
    stages: Sequence[Callable[[Instruction], bool]],
    allowed: Callable[[Instruction], bool] = lambda _: False,
) -> None:
    """Check that the registers of an asynchronous instruction are not used before its wait.

    `stages` are the instructions required on every path, in order: a commit, a wait.

    Raises:
        Fault: an instruction that is not `allowed` uses them, or a path ends without the stages.
    """
    starts = {position(kernel, instruction)}
    for ends in stages:
        met = {at for start in starts for at in walk(kernel, start, ends)}
        left = -1 in met
        met.discard(-1)
        starts = {at for at in met if ends(kernel.code[at])}
        for other in (kernel.code[at] for at in sorted(met - starts)):
            if registers & names(other) and not allowed(other):
                raise Fault(f"used before it was waited for: {other.text} after {instruction.text}")
        if left:
            raise Fault(f"a path to the end does not wait for it: {instruction.text}")


def refuse_overwriting(
    kernel: Kernel,
    instruction: Instruction,
    registers: Sequence[str],
    waits: Callable[[Instruction], bool],
) -> None:
    """Check that no register that an instruction loads is written before its value has arrived.

    It has arrived where the register is read: a true dependency needs no wait. A guarded read does
    not count, as it may not be executed.

    Raises:
        Fault: an instruction writes one of them on a path without a read or a wait.
    """
    start = position(kernel, instruction)
    for register in registers:

        def arrived(other: Instruction, register: str = register) -> bool:
            return waits(other) or (other.guard is None and reads(other, register))

        for at in walk(kernel, start, arrived):
            other = kernel.code[at]
            if at >= 0 and not arrived(other) and writes(other, register):
                raise Fault(
                    f"overwritten before it was waited for: {other.text} after {instruction.text}"
                )
