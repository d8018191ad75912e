"""Launches on leaves of 2^31 elements and more: a few programs run, on the memory that they need.

The large tensors are on "meta": they have sizes, and the executor gives them addresses, but no
memory. Instead, small tensors at the addresses that some programs read and write hold the data.
Compilation runs in a separate process, from test_triton_grids.py.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from revdeq_kernels.core import roles
from revdeq_kernels.core.op import OPS as KNOWN
from revdeq_kernels.exact_numbers import contraction, digit_bytes
from revdeq_kernels.ops.residual import COLUMNS, ROWS
from revdeq_kernels.triton import launch as launchers
from revdeq_kernels.triton.kernels.half_step import lanes
from revdeq_kernels.triton.launch.leaves import BLOCK
from tests.ops.arguments import (
    arguments_of_leaf,
    as_called,
    assert_same_outcome,
    by_field,
    expected,
    lists_of,
    tensors,
)
from tools.ptx.memory import bytes_at
from tools.ptx.triton import Gpu, Launch, Part, Piece, executed
from tools.ptx.types import Array

CHUNK = COLUMNS * ROWS
"""The elements that a program of the residual sums."""

WHOLE = 2**21
"""Leaves with up to this many elements run completely."""

NEAR = (2**29, 2**30, 2**31, 2**32)
"""Programs around these elements are chosen: there, bytes or elements overflow int32 or uint32."""


@dataclass
class Range:
    """Elements of a leaf that some programs process, as separate arguments."""

    leaf: int
    first: int
    size: int
    arguments: dict[str, Any]
    want: dict[str, Tensor]
    got: dict[str, Tensor] = field(default_factory=dict)
    """The results that a launch allocates itself, which are not arguments."""


class Sizes(NamedTuple):
    """The leaves of a launch: their indices in the call, and their numbers of elements."""

    leaves: list[int]
    numels: list[int]

    def programs(self, elements: int, ranges: Sequence[Range]) -> Iterator[int]:
        """The programs of these ranges, with this many elements of one leaf each."""
        begin = 0
        for leaf, numel in zip(self.leaves, self.numels, strict=True):
            for one in ranges:
                if one.leaf == leaf:
                    first = begin + one.first // elements
                    yield from range(first, first + -(-one.size // elements))
            begin += -(-numel // elements)


def check(op: str, numels: Sequence[int], sm: int, **options: Any) -> int:
    """Launch a list op on leaves of these sizes; AssertionError unless all chosen ranges are right.

    Returns how many programs ran.
    """
    call = Call(op, numels, options)
    with executed(sm) as gpu:
        call.check(gpu)
    return call.programs


class Call:
    """A call of a list op on large leaves, and their ranges that have memory."""

    def __init__(self, op: str, numels: Sequence[int], options: dict[str, Any]) -> None:
        self.op, self.name = op, op.removesuffix(".list")
        self.beta = options.setdefault("beta", 0.7312)
        self.numels, self.options = list(numels), options
        self.programs = 0
        self.of_residual = Sizes([], [])  # of the launch before the norms
        of_leaf = [arguments_of_leaf(op, (16,), **options) for _ in numels]
        self.large = lists_of(
            op, [self.enlarged(a, n) for a, n in zip(of_leaf, numels, strict=True)]
        )
        self.leaf_of = {
            id(t): int(n.partition("[")[2][:-1]) for n, t in tensors(self.large).items() if "[" in n
        }

    @cached_property
    def ranges(self) -> list[Range]:
        """The ranges that run, with their expected results."""
        return [self.range(*place) for place in chosen(self.numels, self.unit())]

    def unit(self) -> int:
        """The elements of whole programs, for every kind of program of the op."""
        if self.name == "residual":
            return CHUNK
        exact = any(a.role == roles.DIGITS for a in KNOWN[self.name].arguments)
        return math.lcm(BLOCK, self.of_exact_program()) if exact else BLOCK

    def of_exact_program(self) -> int:
        """The elements of a program of the exact step."""
        digits = contraction(self.beta).digits_per_byte
        return lanes(digits) * digits

    def range(self, leaf: int, first: int, size: int) -> Range:
        arguments = arguments_of_leaf(self.op, (size,), seed=leaf + first % 1000, **self.options)
        want = expected(self.name, {n: a for n, a in arguments.items() if n != "out"})
        if "out" in arguments:
            want["out"] = want.pop("result")
        return Range(leaf, first, size, arguments, want)

    def enlarged(self, arguments: dict[str, Any], numel: int) -> dict[str, Any]:
        """The same without memory, for this many elements; shared arguments do not change."""

        def large(name: str, role: str, t: Tensor) -> Tensor:
            size = digit_bytes(numel, self.beta) if role == roles.DIGITS else numel
            return t if role == roles.FLAG else torch.empty(size, dtype=t.dtype, device="meta")

        described = {a.name: a.role for a in KNOWN[self.op].arguments}
        return {
            n: large(n, described[n], t) if isinstance(t, Tensor) else t
            for n, t in arguments.items()
        }

    def check(self, gpu: Gpu) -> None:
        """Launch; AssertionError unless each range has the reference's bits."""
        gpu.part = lambda launch: self.part(gpu, launch)
        self.launch()
        for one in self.ranges:
            self.compare(one)

    def launch(self) -> None:
        """Call what launches the op's kernels."""
        args, keywords = as_called(self.op, self.large)
        getattr(launchers, self.name)(*args, **keywords)

    # ---- what runs ---------------------------------------------------------------------------

    def part(self, gpu: Gpu, launch: Launch) -> Part:
        given = by_field(launch.arguments)
        name = launch.source.fn.__name__
        if name == "norms_kernel":
            return self.part_of_norms(gpu, given)
        of_leaves = [v for v in given.values() if isinstance(v, tuple)]
        lead = next(v for v in of_leaves if id(v[0]) in self.leaf_of)
        sizes = Sizes([self.leaf_of[id(t)] for t in lead], list(given["numel"]))
        ranges = [r for r in self.ranges if r.leaf in sizes.leaves]
        of_program = CHUNK if name == "residual_kernel" else BLOCK
        of_program = self.of_exact_program() if "LANES" in given else of_program
        programs = list(sizes.programs(of_program, ranges))
        if "pass" in name:  # the adjoint's programs follow those of the steps
            programs += [given["steps"] + k for k in sizes.programs(BLOCK, ranges)]
        pieces = [p for one in ranges for p in self.pieces(gpu, one, given, sizes)]
        if name == "residual_kernel":
            self.of_residual = sizes
            pieces += self.sums(gpu, given["sums"], sizes, ranges)
        self.programs += len(programs)
        return Part(programs, pieces)

    def pieces(self, gpu: Gpu, one: Range, given: dict[str, Any], sizes: Sizes) -> Iterator[Piece]:
        """The memory of a range; also provides memory for results allocated by the launch."""
        position = sizes.leaves.index(one.leaf)
        for value in given.values():
            if not isinstance(value, tuple) or not isinstance(value[0], Tensor):
                continue
            large = value[position]
            small = one.arguments.get(self.name_of(large))
            if small is None:
                small = one.got["result"] = torch.zeros(one.size, dtype=large.dtype)
            first = one.first
            if self.name_of(large) == "digits":
                first //= contraction(self.beta).digits_per_byte
            yield gpu.address(large) + first * large.element_size(), memory_of(small)

    def name_of(self, large: Tensor) -> str:
        """The argument that a large tensor is."""
        return next((n.partition("[")[0] for n, t in tensors(self.large).items() if t is large), "")

    def sums(
        self, gpu: Gpu, sums: Tensor, sizes: Sizes, ranges: Sequence[Range]
    ) -> Iterator[Piece]:
        """The memory for two sums of each program of the residual."""
        for one in ranges:
            programs = list(sizes.programs(CHUNK, [one]))
            one.got["sums"] = torch.zeros(len(programs), 2, dtype=torch.float64)
            yield gpu.address(sums) + 16 * programs[0], memory_of(one.got["sums"])

    def part_of_norms(self, gpu: Gpu, given: dict[str, Any]) -> Part:
        """The programs of the leaves that ran completely."""
        sizes, programs, pieces = self.of_residual, [], []
        for one in self.ranges:
            if one.leaf in sizes.leaves and one.size == self.numels[one.leaf]:
                position = sizes.leaves.index(one.leaf)
                programs.append(position)
                (first, *_) = sizes.programs(CHUNK, [one])
                one.got["result"] = torch.zeros(2, dtype=torch.float64)
                pieces.append((gpu.address(given["sums"]) + 16 * first, memory_of(one.got["sums"])))
                place = gpu.address(given["result"]) + 16 * position
                pieces.append((place, memory_of(one.got["result"])))
        self.programs += len(programs)
        return Part(programs, pieces)

    # ---- what came of it ---------------------------------------------------------------------

    def compare(self, one: Range) -> None:
        """Raise AssertionError unless a range has the reference's bits."""
        got, label = one.arguments | one.got, (self.op, self.numels, one.leaf, one.first)
        if self.name == "residual" and "result" not in got:
            roots = [math.sqrt(x) for x in got["sums"][0].tolist()]
            got["result"] = torch.tensor(roots, dtype=torch.float64)
        got.pop("sums", None)
        assert_same_outcome(tensors(got), one.want, label)


def chosen(numels: Sequence[int], unit: int) -> Iterator[tuple[int, int, int]]:
    """Some ranges of each leaf, of whole programs or up to its end: (leaf, first, size)."""
    draw = random.Random(unit)
    for leaf, numel in enumerate(numels):
        if numel <= WHOLE:
            yield leaf, 0, numel
            continue
        count = -(-numel // unit)
        near = {n // unit + d for n in NEAR for d in (-1, 0)} | {0, count - 1, count - 2}
        for k in sorted(k for k in near | {draw.randrange(count)} if 0 <= k < count):
            yield leaf, k * unit, min(unit, numel - k * unit)


def memory_of(t: Tensor) -> Array:
    """The bytes of a small tensor, which a launch reads and writes."""
    return bytes_at(t.data_ptr(), t.numel() * t.element_size())
