"""Triton's own launch path, with the executor instead of a GPU and its driver.

Within ``executed(sm)``, a launch binds its arguments, specializes and compiles as on a GPU of that
architecture. The PTX that Triton would pass to ptxas goes to the executor, which runs it on CPU
tensors. This only replaces what Triton allows to be replaced: the driver, the stages of its
compiler (``knobs.runtime.add_stages_inspection_hook``) and the folder of its cache.

With TRITON_INTERPRET=1, the interpreter replaces the compiler when triton is imported, so the
process must be started without it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import JITFunction
from triton.runtime.driver import driver

from tools.ptx.kernel import Kernel
from tools.ptx.machine import execute
from tools.ptx.memory import Memory, bytes_at

CACHE = Path(__file__).parents[2] / "build" / "ptx"
"""The cache of compiled PTX: separate from Triton's own cache, because it has no machine code."""

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""The maximum shared memory per block (CUDA Programming Guide, technical specifications)."""

MOST_THREADS = 1024
"""Maximum threads per block, on every architecture."""

MOST_PROGRAMS = 2**31 - 1
"""Maximum programs per grid, on every architecture."""

_NUMBERS = {f"{k}{8 * size}": np.dtype(f"{k}{size}") for k in "iu" for size in (1, 2, 4, 8)}
_NUMBERS |= {"i1": np.dtype("i1"), "fp32": np.dtype("f4"), "fp64": np.dtype("f8")}
"""The numeric types of a kernel's arguments, by their names in Triton."""

_SCRATCH = (bytes(8), bytes(8))
"""Arguments that Triton's launcher adds to every kernel: global and profiling scratch, unused."""

Piece = tuple[int, NDArray[np.uint8]]
"""An address, and the bytes that start there."""


class Launch(NamedTuple):
    """A launch: its source has the kernel's name, types and constants."""

    source: Any
    """triton.compiler.ASTSource: what was compiled, for comparison with other launches."""
    programs: int
    arguments: dict[str, Any]
    """By parameter name of the kernel."""


class Part(NamedTuple):
    """Part of a launch on tensors too large to allocate: what runs, and the memory that it uses."""

    programs: Sequence[int]
    pieces: Sequence[Piece]


@dataclass
class Gpu:
    """The GPU that the executor represents, and its launches."""

    sm: int
    launches: list[Launch] = field(default_factory=list)
    instructions: int = 0
    """Instructions executed by all threads so far."""
    change: Callable[[str], str] | None = None
    """A change of a kernel's PTX before it runs, to plant faults."""
    part: Callable[[Launch], Part] | None = None
    """The part of a launch to run if it has tensors on "meta", which are at ``address``."""
    _places: dict[int, tuple[torch.UntypedStorage, int]] = field(default_factory=dict)

    def kernel(self, text: str) -> Kernel:
        """The kernel of this PTX, with the change applied."""
        return _read(text if self.change is None else self.change(text))

    def address(self, t: Tensor) -> int:
        """The address of a tensor's first element; a tensor on "meta" is given its own address."""
        if not t.is_meta:
            return t.data_ptr()
        storage = t.untyped_storage()
        if storage._cdata not in self._places:
            ends = [place + kept.nbytes() for kept, place in self._places.values()]
            begin = max(ends, default=2**48)  # above all addresses of a process
            self._places[storage._cdata] = (storage, (-(-begin // 2**12) + 1) * 2**12)
        return self._places[storage._cdata][1] + t.data_ptr()


@lru_cache(maxsize=64)  # each takes a few megabytes
def _read(text: str) -> Kernel:
    return Kernel(text)


@contextlib.contextmanager
def executed(sm: int, cache: Path = CACHE) -> Iterator[Gpu]:
    """Context manager: Triton kernels run on the executor, compiled for this capability.

    RuntimeError if Triton's interpreter is on. The tensors are on the CPU; Fault and Missing are
    raised by the launch that caused them.
    """
    if not isinstance(tl.zeros, JITFunction):
        raise RuntimeError(
            "Triton's interpreter replaced its compiler in this process; start a process with "
            "TRITON_INTERPRET=0"
        )
    gpu, before = Gpu(sm), driver._active
    with knobs.runtime.scope(), knobs.cache.scope(), knobs.compilation.scope():
        knobs.runtime.interpret = False
        knobs.runtime.add_stages_inspection_hook = _without_ptxas  # type: ignore[assignment]
        knobs.cache.dir = str(cache)
        knobs.compilation.store_binary_only = True
        driver.set_active(_Driver(gpu))
        try:
            yield gpu
        finally:
            driver._active = before


def _without_ptxas(*given: Any) -> tuple[str, str] | None:
    """Let the driver load the PTX itself.

    Triton passes the backend, the stages and more when it compiles. Since 3.8 it also calls without
    arguments, for a key and a hash of what the hook does.
    """
    if not given:
        key = "the cubin is the PTX"
        return key, hashlib.sha256(key.encode()).hexdigest()
    stages: dict[str, Any] = given[1]
    stages["cubin"] = lambda text, _metadata: text.encode()
    return None


class _Driver(DriverBase):
    """The driver interface of Triton. Each architecture is a device, numbered by its `sm`."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.utils = self
        self.launcher_cls = _Launcher

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.gpu.sm, 32)

    def get_current_device(self) -> int:
        return self.gpu.sm

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("the executor cannot measure time")

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_BYTES[device]}

    def load_binary(self, name: str, ptx: bytes, _shared: int, _device: int) -> tuple[Any, ...]:
        """Module, function, registers, spilled bytes, and maximum threads per block."""
        return name, ptx.decode(), 0, 0, MOST_THREADS


class _Launcher:
    """Runs a compiled kernel on the driver that is active at that time."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.source, self.metadata = source, metadata

    @cached_property
    def signature(self) -> tuple[Any, ...]:
        return tuple(self.source.signature.values())

    def __call__(self, *call: Any) -> None:
        """Run; Triton passes the grid, stream, function, four hooks, and the arguments."""
        (programs, *others), text, arguments = call[:3], call[4], call[9:]
        assert isinstance(driver.active, _Driver)
        gpu = driver.active.gpu
        if others != [1, 1] or not 0 <= programs <= MOST_PROGRAMS:
            raise ValueError(f"expected up to {MOST_PROGRAMS} programs in a row, got {call[:3]}")
        named = dict(zip(self.source.fn.arg_names, arguments, strict=True))
        gpu.launches.append(Launch(self.source, programs, named))
        given = list(_flat(self.signature, arguments))
        tensors = [value for kind, value in given if kind.startswith("*")]
        blocks, pieces = None, _pieces([t for t in tensors if not t.is_meta])
        if any(t.is_meta for t in tensors):
            if gpu.part is None:
                raise ValueError("a tensor on meta has no memory; provide it with Gpu.part")
            blocks, more = gpu.part(gpu.launches[-1])
            pieces += more
        gpu.instructions += execute(
            gpu.kernel(text),
            programs,
            [*(_bytes(gpu, kind, value) for kind, value in given), *_SCRATCH],
            Memory(pieces),
            threads=32 * self.metadata.num_warps,
            shared_bytes=self.metadata.shared,
            blocks=blocks,
        )


def _flat(kinds: Sequence[Any], values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Type and value of all runtime arguments of a kernel; constants are compiled into it."""
    for kind, value in zip(kinds, values, strict=True):
        if isinstance(kind, tuple):
            yield from _flat(kind, value)
        elif kind != "constexpr":
            yield kind, value


def _bytes(gpu: Gpu, kind: str, value: Any) -> bytes:
    """An argument in the form that the kernel receives."""
    if kind.startswith("*"):
        return gpu.address(value).to_bytes(8, "little")
    return np.asarray(value).astype(_NUMBERS[kind]).tobytes()


def _pieces(tensors: Sequence[Tensor]) -> list[Piece]:
    """The bytes of exactly these tensors; tensors that share memory form one piece."""
    extents = sorted(
        (t.data_ptr(), t.data_ptr() + span * t.element_size())
        for t in tensors
        for span in [1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))]
        if t.numel() > 0
    )
    joined: list[list[int]] = []
    for begin, end in extents:
        if joined and begin < joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([begin, end])
    return [(begin, bytes_at(begin, end - begin)) for begin, end in joined]
