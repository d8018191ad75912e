"""Calls on tensors too large for any machine: addresses without memory, except for chosen parts.

The host code of csrc/cuda only reads pointers, sizes and strides. Of its launches, only the blocks
with the chosen elements are run, and these elements are compared to the reference.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import revdeq_kernels as rk
from revdeq_kernels.core import roles
from revdeq_kernels.core.op import OPS
from revdeq_kernels.exact_numbers import contraction
from tests.ops.arguments import call
from tests.ops.fuzz_example import fill
from tests.ops.test_fuzz import assert_same_tensor
from tools.ptx.cuda.gpu import Gpu, Piece, bytes_of, call_recorded
from tools.ptx.cuda.recorder import Launch, recording
from tools.ptx.memory import bytes_at

BASE = 1 << 44
"""Far above the low addresses of a process, and below its heap and libraries."""

THREADS, LANES = 256, 32
CHUNK = 4096  # elements of a block of threads of a residual: csrc/residual.h
FAR = (2**31, 2**32, 2**33)
"""Elements beyond which a 32-bit index would fail; there is a part around each."""


class Space:
    """The addresses of the tensors, and the parts that have memory."""

    def __init__(self) -> None:
        self.parts: list[Piece] = []
        self._next = BASE

    def tensor(self, numel: int, dtype: torch.dtype, *, aligned: bool = True) -> Tensor:
        """A tensor without memory; if not aligned, one element after an aligned address."""
        size = numel * dtype.itemsize
        start = self._next + (0 if aligned else dtype.itemsize)
        self._next = -(-(start + size) // 4096) * 4096 + 4096
        return torch.frombuffer((ctypes.c_uint8 * size).from_address(start), dtype=dtype)

    def put(self, tensor: Tensor, first: int, values: Tensor) -> None:
        """Provide memory for the elements of `tensor` from `first`, with `values`."""
        address = tensor.data_ptr() + first * tensor.element_size()
        self.parts.append((address, values.view(torch.uint8).numpy()))


@dataclass(frozen=True)
class Call:
    """An op on lists, with the dtypes of its tensors and its numbers."""

    label: str
    dtypes: dict[str, torch.dtype]
    numbers: dict[str, Any] = field(default_factory=dict)
    vectors: bool = True

    @property
    def digits(self) -> int:
        """The digits per byte; 1 for an op without digits."""
        if "digits" not in self.dtypes:
            return 1
        return contraction(self.numbers["beta"]).digits_per_byte

    def per_block(self) -> list[int]:
        """The elements of a block of threads, for each half of a pass, or for the whole op."""
        name = OPS[self.label].name
        if name == "residual":
            return [CHUNK]
        widths = []
        if name != "adjoint_":
            fixed = "digits" in self.dtypes or "quantize" in name
            widths.append(4 if fixed else 16 // next(iter(self.dtypes.values())).itemsize)
        written = [a.name for a in OPS[self.label].arguments if a.written]
        widths += [16 // self.dtypes[name].itemsize for name in written if "grad" in name]
        per = [THREADS * (width if self.vectors else 1) for width in widths]
        # A thread of an exact step processes the groups of whole blocks, and at least four.
        groups = -(-4 // self.digits) * self.digits if "digits" in self.dtypes else 1
        return [per[0] * groups, *per[1:]]


@dataclass
class Part:
    """Elements of a leaf: the tensors for the kernel, and the same for the reference."""

    leaf: int
    first: int
    end: int
    seen: dict[str, Tensor]
    kept: dict[str, Tensor]


class Run:
    """One call on leaves of these sizes; ``check`` compares it to the reference."""

    def __init__(self, gpu: Gpu, call: Call, numels: Sequence[int], seed: int = 0) -> None:
        self.gpu, self.call, self.numels = gpu, call, numels
        self.space, self.choices = Space(), random.Random(seed)
        self.leaves = [self._tensors(numel) for numel in numels]
        self.parts = [part for leaf in range(len(numels)) for part in self._parts_of(leaf)]
        self.flag = torch.zeros(1, dtype=torch.int32)
        self.space.parts.append((self.flag.data_ptr(), bytes_of(self.flag)))
        self.launches = 0
        self._launched_leaves = 0

    def check(self) -> None:
        """Call the op, and compare every part."""
        made: list[Piece] = []

        def allocated(address: int, size: int) -> None:
            made.append((address, bytes_at(address, size)))

        with recording(lambda launch: self._launch(launch, made), allocated):
            result = self._call()
        assert self._launched_leaves == len(self.leaves), "a leaf was not launched"
        for part in self.parts:
            told = f"{self.call} {self.numels}: leaf {part.leaf} from {part.first}"
            with rk.backend("reference"):
                expected = self._call_reference(part)
            for name, kept in part.kept.items():
                assert_same_tensor(part.seen[name], kept, f"{told}: {name}")
            if isinstance(result, list):
                got = result[part.leaf][part.first : part.end]
                assert_same_tensor(got, expected, told)

    def _call(self) -> Any:
        """The host code, with the leaves as lists."""
        arguments: dict[str, Any] = {n: [leaf[n] for leaf in self.leaves] for n in self.leaves[0]}
        if any(a.role == roles.FLAG for a in OPS[self.call.label].arguments):
            arguments["flag"] = self.flag
        return call_recorded(self.call.label, arguments | self.call.numbers)

    def _call_reference(self, part: Part) -> Any:
        given: dict[str, Any] = part.kept | self.call.numbers
        if self.call.label == "quantize.list":
            part.kept["out"] = rk.quantize(given["x"], given["frac_bits"])
            return None
        if self.call.label == "update_exact_.list":
            given["flag"] = torch.zeros(1, dtype=torch.int32)
        return call(OPS[self.call.label].name, given)

    def _tensors(self, numel: int) -> dict[str, Tensor]:
        return {
            name: self.space.tensor(self._size(name, numel), dtype, aligned=self.call.vectors)
            for name, dtype in self.call.dtypes.items()
        }

    def _size(self, name: str, numel: int) -> int:
        """The elements of a tensor of a leaf with `numel`."""
        return -(-numel // (LANES * self.call.digits)) * LANES if name == "digits" else numel

    def _parts_of(self, leaf: int) -> Iterator[Part]:
        """The first and last elements, some in between, and those around FAR."""
        numel, unit = self.numels[leaf], math.lcm(*self.call.per_block())
        last = (numel - 1) // unit
        chosen = {0, last, self.choices.randint(0, last)}
        chosen |= {k for far in FAR for k in (far // unit - 1, far // unit) if 0 <= k <= last}
        for k in sorted(chosen):
            yield self._part(leaf, k * unit, min(numel, (k + 1) * unit))

    def _part(self, leaf: int, first: int, end: int) -> Part:
        seen = {}
        for name, dtype in self.call.dtypes.items():
            start = first // self.call.digits if name == "digits" else first
            size = self._size(name, end - first) * dtype.itemsize
            seen[name] = fill("mixed", dtype, self.choices.randrange(2**31), size).view(dtype)
            self.space.put(self.leaves[leaf][name], start, seen[name])
        return Part(leaf, first, end, seen, {name: t.clone() for name, t in seen.items()})

    def _launch(self, launch: Launch, made: list[Piece]) -> None:
        """Run the blocks of a launch that contain parts of its leaves."""
        if launch.kernel == "norms_kernel":
            return
        per, begin, total = self.call.per_block(), self._launched_leaves, 0
        while total < launch.grid[0] and self._launched_leaves < len(self.numels):
            total += sum(-(-self.numels[self._launched_leaves] // n) for n in per)
            self._launched_leaves += 1
        assert total == launch.grid[0], f"{launch}: {total} blocks were expected"
        self.launches += 1
        leaves = range(begin, self._launched_leaves)
        blocks = sorted(_blocks(per, leaves, self.numels, self.parts))
        self.gpu.launch(launch, self.space.parts + made, blocks)
        if launch.kernel.startswith("residual_kernel"):
            self._compare_sums(made[-1][1].view(np.float64).reshape(-1, 2))

    def _compare_sums(self, sums: np.ndarray) -> None:
        """For every part, which is a chunk: its norms from the sums of all chunks of all leaves."""
        chunks = [-(-numel // CHUNK) for numel in self.numels]
        for part in self.parts:
            row = sums[sum(chunks[: part.leaf]) + part.first // CHUNK]
            with rk.backend("reference"):
                expected = rk.residual(part.seen["z"], part.seen["f"])
            told = f"{self.numels}: leaf {part.leaf} from {part.first}"
            assert_same_tensor(torch.from_numpy(row).sqrt(), expected, told)


def _blocks(
    per: list[int], leaves: range, numels: Sequence[int], parts: list[Part]
) -> Iterator[int]:
    """The blocks of a launch of these leaves that contain the parts; one half after the other."""
    offset = 0
    for elements, leaf in itertools.product(per, leaves):
        for part in parts:
            if part.leaf == leaf:
                first, end = part.first // elements, -(-part.end // elements)
                yield from range(offset + first, offset + end)
        offset += -(-numels[leaf] // elements)


class ChannelRun(Run):
    """One call with one beta per channel, shared by `inner` neighbors in memory.

    `stride` is the distance between betas in elements.
    """

    def __init__(
        self, gpu: Gpu, call: Call, outer: int, channels: int, inner: int, stride: int
    ) -> None:
        super().__init__(gpu, call, [outer * channels * inner])
        self.shape = outer, channels, inner
        self.betas = self.space.tensor(channels * stride, torch.float32)
        self.stride = stride
        used = torch.cat([self._channels(part) for part in self.parts]).unique()
        for channel in used.tolist():
            self.space.put(self.betas, channel * stride, _beta(torch.tensor([channel])))

    def _channels(self, part: Part) -> Tensor:
        """The channel of every element."""
        _, channels, inner = self.shape
        return torch.arange(part.first, part.end) // inner % channels

    def _call(self) -> Any:
        arguments: dict[str, Any] = {n: t.view(self.shape) for n, t in self.leaves[0].items()}
        arguments["beta"] = self.betas.as_strided((self.shape[1], 1), (self.stride, 1))
        return call_recorded(self.call.label.replace("list", "channels"), arguments)

    def _call_reference(self, part: Part) -> Any:
        beta = _beta(self._channels(part))
        return call(OPS[self.call.label].name, part.kept | {"beta": beta})


def _beta(channels: Tensor) -> Tensor:
    """Betas that differ between channels that are adjacent, or 2^32 apart."""
    return (0.5 + 0.4 * torch.sin(channels.double() * 0.7)).float()
