"""Run a kernel: many blocks at once, with one NumPy operation per instruction."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np

from tools.ptx.errors import Fault, Missing
from tools.ptx.instructions import find
from tools.ptx.instructions.registry import Step
from tools.ptx.kernel import Instruction, Kernel
from tools.ptx.memory import Memory
from tools.ptx.operands import Operands
from tools.ptx.schedule import Branch, Meeting, Program, Wait, run
from tools.ptx.shared import Shared
from tools.ptx.types import Array

AT_ONCE = 1 << 14
"""Threads that run at once, so that their registers fit into a core's cache."""

SHARED_AT_ONCE = 1 << 25
"""Bytes of shared memory of the blocks that run at once."""

WARP = 32


class Part(Protocol):
    """State that instructions keep for the running blocks; see ``Machine.part``."""

    def __init__(self, machine: Machine) -> None: ...

    def finish(self) -> None:
        """The blocks have ended."""
        ...


P = TypeVar("P", bound=Part)


class Machine(Operands):
    """A compiled kernel, and the state of the blocks that it runs.

    Instructions use these attributes, which are set while a kernel runs, and those of `Operands`:

    Attributes:
        size: Threads per block; the threads of a block are consecutive.
        block, thread, warp: For each thread, the index of its block (among the running blocks), its
            index in the block, and the index of its warp in the block.
        shared, memory: Shared memory of the blocks, and global memory.
        parameters: The bytes of the kernel's parameters.
    """

    mask: Array | None
    size: int
    block: Array
    thread: Array
    warp: Array
    memory: Memory
    shared: Shared
    parameters: Array

    def __init__(self, kernel: Kernel) -> None:
        """Compile `kernel`; Missing for the first instruction that is not modeled."""
        super().__init__(kernel)
        self.program = Program()
        self._parts: dict[type[Any], Any] = {}
        with no_collection():
            for instruction in kernel.code:
                self._compile(instruction)
        self.program.finish()
        self._granule = min([4, *map(shared_access, kernel.code)])

    def execute(
        self,
        grid: int,
        arguments: Sequence[bytes],
        memory: Memory,
        *,
        threads: int | None = None,
        shared_bytes: int = 0,
        blocks: Sequence[int] | None = None,
        at_once: int = AT_ONCE,
    ) -> int:
        """See ``execute``."""
        self.size, self.memory = self._block_size(threads), memory
        self.parameters = self._pack(arguments)
        total = self.kernel.shared_bytes + shared_bytes
        per = max(1, min(at_once // self.size, SHARED_AT_ONCE // max(1, total)))
        chosen = np.arange(grid) if blocks is None else np.asarray(blocks, np.int64)
        executed = 0
        memory.begin()
        try:
            with np.errstate(all="ignore"):
                for first in range(0, len(chosen), per):
                    self._begin(grid, chosen[first : first + per], total)
                    executed += run(self, self.program)
                    for part in self._parts.values():
                        part.finish()
        finally:
            self.registers.clear()
            self.special.clear()
            self.shared = Shared(0, 0, 1)
            self.memory = Memory([])
            self._parts = dict.fromkeys(self._parts)
        return executed

    def _block_size(self, threads: int | None) -> int:
        declared = self.kernel.threads
        size = threads or declared
        if size is None:
            raise ValueError(f"threads: expected a number, as {self.kernel.name} does not say it")
        if size != (declared or size):
            raise ValueError(f"threads: expected {declared}, got {threads}")
        for unit in ("warp", "warpgroup"):
            if size % self.unit_size(unit) and self.program.meets(unit):
                raise Missing(f"blocks of {size} threads, whose last {unit} is not whole")
        return size

    def _pack(self, arguments: Sequence[bytes]) -> Array:
        """The parameter space, from the bytes of each parameter."""
        places = self.kernel.parameters
        if len(arguments) != len(places):
            raise ValueError(f"arguments: expected {len(places)}, got {len(arguments)}")
        space = np.zeros(self.kernel.parameter_bytes, np.uint8)
        for (name, (offset, size)), value in zip(places.items(), arguments, strict=True):
            if len(value) != size:
                raise ValueError(f"{name}: expected {size} bytes, got {len(value)}")
            space[offset : offset + size] = np.frombuffer(value, np.uint8)
        return space

    def _begin(self, grid: int, blocks: Array, shared_bytes: int) -> None:
        """The state in which these blocks of the grid start."""
        size = self.size
        self.count = len(blocks) * size
        self.mask = None
        lane = np.arange(self.count)
        self.block, self.thread = lane // size, lane % size
        self.warp = self.thread // WARP
        self.registers[:] = self._unwritten
        zero, one = np.zeros(1, np.uint32), np.ones(1, np.uint32)
        self.special |= {
            "%tid.x": self.thread.astype(np.uint32),
            "%ntid.x": np.array([size], np.uint32),
            "%ctaid.x": blocks.astype(np.uint32)[self.block],
            "%nctaid.x": np.array([grid], np.uint32),
            "%laneid": (self.thread % WARP).astype(np.uint32),
            "%warpid": self.warp.astype(np.uint32),
        }
        for axis in "yz":
            self.special |= {f"%tid.{axis}": zero, f"%ctaid.{axis}": zero}
            self.special |= {f"%ntid.{axis}": one, f"%nctaid.{axis}": one}
        self.shared = Shared(len(blocks), shared_bytes, -(-size // WARP), self._granule)
        self._parts = dict.fromkeys(self._parts)
        for kind in list(self._parts):
            self.part(kind)()

    def part(self, kind: type[P]) -> Callable[[], P]:
        """A function that returns the state that some instructions keep for the running blocks.

        It is created by ``kind(machine)`` when the blocks start; ``finish`` is called at their end.
        """
        self._parts.setdefault(kind, None)

        def found() -> P:
            if self._parts[kind] is None:
                self._parts[kind] = kind(self)
            return self._parts[kind]

        return found

    def unit_size(self, unit: str) -> int:
        """The number of threads of a "warp", "warpgroup" or "block"."""
        return self.size if unit == "block" else {"warp": WARP, "warpgroup": 4 * WARP}[unit]

    def complete(self, mask: Array, unit: str) -> Array:
        """The threads of `mask` whose entire unit is in `mask`."""
        size = self.unit_size(unit)
        return np.repeat(mask.reshape(-1, size).all(axis=1), size)

    def _compile(self, instruction: Instruction) -> None:
        try:
            if instruction.op[0] in ("bra", "ret", "exit"):
                self.program.add(instruction.text, _nothing, self._branch(instruction))
                return
            row, groups = find(instruction)
            step = row.compile(self, instruction, **groups)
            control = Meeting(row.together) if row.together else None
            if row.waits:
                ready, step = step
                control = Wait(ready)
            if instruction.guard:
                if row.waits:
                    raise Missing("a guard")
                step = self._guarded(instruction, step, row.together)
        except Missing as missing:
            if instruction.text in str(missing):
                raise
            raise Missing(f"{missing}: {instruction.text}") from missing
        self.program.add(instruction.text, step, control)

    def _branch(self, instruction: Instruction) -> Branch:
        if instruction.op not in (["bra"], ["bra", "uni"], ["ret"], ["exit"]):
            raise Missing(instruction.text)
        end = len(self.kernel.code)
        target = self.kernel.labels[instruction.args[0]] if instruction.args else end
        if not instruction.guard:
            return Branch(target, None)
        chosen = self._chosen(instruction)
        uniform = "uni" in instruction.op
        return Branch(target, self._same_in_warps(chosen, instruction) if uniform else chosen)

    def _same_in_warps(
        self, chosen: Callable[[], Array], instruction: Instruction
    ) -> Callable[[], Array]:
        """The same; Fault if the running threads of a warp do not agree."""

        def checked() -> Array:
            taken = self.spread(chosen())
            running = np.ones(self.count, np.bool_) if self.mask is None else self.mask
            warps = self.block * -(-self.size // WARP) + self.warp
            if np.isin(warps[running & taken], warps[running & ~taken]).any():
                raise Fault(f"a warp does not take one way: {instruction.text}")
            return taken

        return checked

    def _chosen(self, instruction: Instruction) -> Callable[[], Array]:
        """A function that returns for which threads the guard holds."""
        assert instruction.guard
        read = self.read(instruction.guard, "pred")
        return (lambda: ~read()) if instruction.negated else read

    def _guarded(self, instruction: Instruction, step: Step, together: str) -> Step:
        chosen = self._chosen(instruction)

        def guarded() -> None:
            outer, inner = self.mask, chosen()
            if outer is not None:
                inner = inner & outer
            if inner.all():
                step()
            elif inner.any():
                if together and not np.array_equal(inner, self.complete(inner, together)):
                    raise Fault(f"part of a {together} runs {instruction.text}")
                self.mask = inner
                step()
                self.mask = outer

        return guarded


@contextmanager
def no_collection() -> Iterator[None]:
    """Disable garbage collection, which would traverse all of torch for every function."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _nothing() -> None:
    pass


def shared_access(instruction: Instruction) -> int:
    """Bytes of a shared memory access by ld, st, atom or red; a large number for all others."""
    name, *words = instruction.op
    if name not in ("ld", "st", "atom", "red") or not any(w.startswith("shared") for w in words):
        return 16
    vector = next((int(w[1:]) for w in words if re.fullmatch(r"v\d", w)), 1)
    return vector * int(re.sub(r"\D", "", words[-1])) // 8


def execute(
    kernel: Kernel,
    grid: int,
    arguments: Sequence[bytes],
    memory: Memory,
    *,
    threads: int | None = None,
    shared_bytes: int = 0,
    blocks: Sequence[int] | None = None,
    at_once: int = AT_ONCE,
) -> int:
    """Run a kernel; returns how many instructions its threads executed.

    A kernel is compiled on its first call.

    Args:
        kernel: The kernel.
        grid: Number of blocks.
        arguments: The bytes of each parameter.
        memory: Global memory.
        threads: Threads per block; needed unless the kernel declares it.
        shared_bytes: Dynamic shared memory per block.
        blocks: Run only these blocks of the grid.
        at_once: Threads that run at once; at least one block.

    Raises:
        Fault: Illegal behavior of the kernel.
        Missing: The kernel contains an instruction that is not modeled.
    """
    if kernel.machine is None:
        kernel.machine = Machine(kernel)
    return kernel.machine.execute(
        grid,
        arguments,
        memory,
        threads=threads,
        shared_bytes=shared_bytes,
        blocks=blocks,
        at_once=at_once,
    )
