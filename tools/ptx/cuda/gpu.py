"""The CUDA ops on a CPU: csrc/cuda's host code launches kernels, the executor runs their PTX."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from revdeq_kernels.core.op import OPS
from tools.ptx.cuda import compiled
from tools.ptx.cuda.recorder import NAMESPACE, Launch, recording
from tools.ptx.errors import Fault
from tools.ptx.kernel import Kernel
from tools.ptx.machine import Machine, execute
from tools.ptx.memory import Memory, bytes_at
from tools.ptx.registers import poison
from tools.ptx.types import DTYPES

Piece = tuple[int, np.ndarray]
"""Bytes, and their address for kernels."""

MOST_BLOCKS = 2**31 - 1
POISON = 0xA5
"""The value that fills memory allocated by the host code."""


class _Machine(Machine):
    """Reading a register that was never written is not a fault: it contains NaN.

    nvcc computes with such registers, and then selects another value.
    """

    def _begin(self, grid: int, blocks: np.ndarray, shared_bytes: int) -> None:
        super()._begin(grid, blocks, shared_bytes)
        kinds = self.kernel.registers.values()
        self.registers[:] = [poison(DTYPES[kind]) for kind in kinds]


class Gpu:
    """A GPU of one architecture ("80", "90a", "100"), as far as PTX defines its behavior."""

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self.launched: Counter[str] = Counter()
        """How often each kernel ran."""
        self._texts = compiled.kernels(arch)  # name -> its mangled name, its PTX
        self._kernels: dict[str, Kernel] = {}

    @property
    def kernels(self) -> list[str]:
        """The readable names of all kernels of csrc/cuda."""
        return list(self._texts)

    def call(self, op: str, arguments: dict[str, Any]) -> Any:
        """Call an op of csrc/cuda ("update_.list") with these arguments, on CPU tensors.

        Kernels may read the tensors and the host code's allocations, and may write to the tensors
        that the op writes: accesses to other memory raise Fault or ValueError.
        """
        memory, made = pieces(op, arguments), []

        def allocated(address: int, size: int) -> None:
            # What was there before has been freed.
            made[:] = [m for m in made if m[0] + m[1].size <= address or address + size <= m[0]]
            made.append((address, bytes_at(address, size)))
            made[-1][1].fill(POISON)

        with recording(lambda launch: self.launch(launch, memory + made), allocated):
            return call_recorded(op, arguments)

    def launch(
        self, launch: Launch, memory: list[Piece], blocks: Sequence[int] | None = None
    ) -> None:
        """Run a launch, or only these blocks of its grid, on this memory."""
        kernel = self.kernel(launch.kernel)
        grid, threads = launch.grid[0], launch.block[0]
        if not 0 < grid <= MOST_BLOCKS or launch.grid[1:] != (1, 1) or launch.block[1:] != (1, 1):
            raise Fault(f"{launch.kernel}: a grid of {launch.grid} blocks of {launch.block}")
        bounds = re.search(r"\.maxntid (\d+)", self.text(launch.kernel))
        if bounds is None or threads > int(bounds[1]):
            raise Fault(f"{launch.kernel}: {threads} threads, out of its launch bounds")
        arguments = launch.arguments([size for _, size in kernel.parameters.values()])
        self.launched[launch.kernel] += 1
        execute(
            kernel,
            grid,
            arguments,
            Memory(memory),
            threads=threads,
            shared_bytes=launch.shared_bytes,
            blocks=blocks,
        )

    def kernel(self, name: str) -> Kernel:
        """The kernel with this readable name."""
        if name not in self._kernels:
            mangled, text = self._texts[name]
            kernel = self._kernels[name] = Kernel(text, mangled)
            kernel.machine = _Machine(kernel)
        return self._kernels[name]

    def text(self, name: str) -> str:
        """The PTX of a kernel."""
        return self._texts[name][1]

    def edited(self, edit: Callable[[str, str], str]) -> Gpu:
        """The same GPU, with `edit(name, text)` applied to the PTX of each kernel."""
        other = copy(self)
        other.launched = Counter()
        other._texts = {n: (m, edit(n, text)) for n, (m, text) in self._texts.items()}
        same = {n for n in self._texts if other.text(n) == self.text(n)}
        other._kernels = {n: kernel for n, kernel in self._kernels.items() if n in same}
        return other


def call_recorded(op: str, arguments: dict[str, Any]) -> Any:
    """Call the host code of an op, under ``recording``."""
    name, _, overload = op.partition(".")
    packet = getattr(getattr(torch.ops, NAMESPACE), name)
    return getattr(packet, overload or "default")(**arguments)


def pieces(op: str, arguments: dict[str, Any]) -> list[Piece]:
    """The memory of a call's tensors; what the op only reads is read-only."""
    return _apart(
        (tensor.data_ptr(), bytes_of(tensor, argument.written))
        for argument in OPS[op].arguments
        for tensor in tree_leaves(arguments.get(argument.name))
        if isinstance(tensor, Tensor) and tensor.numel()
    )


def bytes_of(tensor: Tensor, written: bool = True) -> np.ndarray:
    """From the first to the last element."""
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return bytes_at(tensor.data_ptr(), (last + 1) * tensor.element_size(), written)


def _apart(found: Iterable[Piece]) -> list[Piece]:
    """The same memory, with overlapping tensors (which are only read) merged into one piece."""
    merged: list[Piece] = []
    for address, data in sorted(found, key=lambda piece: (piece[0], piece[1].size)):
        start, before = merged[-1] if merged else (0, data[:0])
        end = start + before.size
        if address < end:
            size = max(end, address + data.size) - start
            merged[-1] = start, bytes_at(start, size, written=False)
        else:
            merged.append((address, data))
    return merged
