"""Examples of calls with arbitrary arguments, drawn by fuzzing.py and run by test_fuzz.py.

An Example describes views into buffers, whose bytes are derived from a seed. The same arguments can
be built from it repeatedly, each time in separate memory, so its repr is enough to reproduce a
failure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.ops.fuzz_table import BF16, F16, F32, F64, I32, U8


@dataclass
class View:
    """The buffer and position of a tensor, and its kind: see KINDS."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    buffer: int
    start: int = 0  # in bytes
    kind: str = "tensor"
    requires_grad: bool = False

    @property
    def span(self) -> int:
        """The bytes from the first to the last element."""
        if 0 in self.shape:
            return 0
        last = sum(
            (size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)
        )
        return (last + 1) * self.dtype.itemsize

    def on(self, memory: list[Tensor]) -> Tensor:
        """The plain tensor at this place."""
        storage, item = memory[self.buffer].untyped_storage(), self.dtype.itemsize
        empty = torch.empty(0, dtype=self.dtype)
        return empty.set_(storage, self.start // item, self.shape, self.strides)

    def build(self, memory: list[Tensor]) -> Any:
        """The argument itself."""
        if self.kind == "meta":
            t = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device="meta")
        else:
            t = KINDS[self.kind](self.on(memory))
        able = isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())
        return t.requires_grad_() if self.requires_grad and able else t


KINDS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda t: t,
    "parameter": lambda t: torch.nn.Parameter(t, requires_grad=False),
    "negative": lambda t: torch.ops.aten._neg_view(t) if t.dtype in (F64, F32, BF16, F16) else t,
    "sparse": lambda t: torch.zeros(t.shape).to_sparse(),
    "mkldnn": lambda t: torch.zeros(t.shape or (1,)).to_mkldnn(),
    "array": lambda t: np.zeros(t.shape, np.float32),
    "list": lambda t: [0.5, 0.5],
    "number": lambda t: 0.5,
    "str": lambda t: "0.5",
    "None": lambda t: None,
}
"""What a tensor may be instead of a plain tensor; View also supports "meta"."""


@dataclass
class Example:
    """One call: the op, its arguments (views, lists of views, anything else), the grad mode."""

    op: str
    values: dict[str, Any]
    fills: list[tuple[str, torch.dtype, int]]  # of each buffer: its content, and a seed
    tail: int
    grad_mode: bool = True
    good: bool = True  # as required by the op's documentation

    def views(self) -> dict[str, View]:
        """All views by name; views in a list by "name[i]"."""
        found = {}
        for name, value in self.values.items():
            several = isinstance(value, (list, tuple))
            labelled = (
                {f"{name}[{i}]": v for i, v in enumerate(value)} if several else {name: value}
            )
            found |= {label: v for label, v in labelled.items() if isinstance(v, View)}
        return found

    def has(self, kind: str) -> bool:
        """Whether a view is of this kind."""
        return any(view.kind == kind for view in self.views().values())

    def dtypes(self) -> set[Any]:
        """The dtypes of all views, and the dtypes among the other arguments."""
        return {view.dtype for view in self.views().values()} | {self.values.get("dtype")}

    def memory(self) -> list[Tensor]:
        """The buffers, as bytes."""
        sizes = [0] * len(self.fills)
        for v in self.views().values():
            sizes[v.buffer] = max(sizes[v.buffer], v.start + v.span)
        return [
            fill(*f, -(-n // 16) * 16 + self.tail) for f, n in zip(self.fills, sizes, strict=True)
        ]

    def build(self, memory: list[Tensor]) -> dict[str, Any]:
        """The arguments, over these buffers."""

        def made(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(made(v) for v in value)
            return value.build(memory) if isinstance(value, View) else value

        return {name: made(value) for name, value in self.values.items()}


def fill(kind: str, dtype: torch.dtype, seed: int, nbytes: int) -> Tensor:
    """Bytes of numbers of `dtype`: ordinary numbers, arbitrary bits, or with extreme values."""
    generator = torch.Generator().manual_seed(seed)
    n, extremes = nbytes // dtype.itemsize, EXTREMES.get(dtype)
    if kind == "bits" or extremes is None:
        found = torch.randint(0, 256, (nbytes,), generator=generator, dtype=U8)
        return found & 1 if dtype == torch.bool else found
    if kind == "beta":
        values = (torch.rand(n, generator=generator, dtype=F64) * 0.9 + 0.05).to(dtype)
    elif dtype == I32:
        reach = 2 ** (seed % 27 + 4)
        values = torch.randint(-reach, reach, (n,), generator=generator, dtype=I32)
    else:
        values = torch.randn(n, generator=generator, dtype=F64) * 2.0 ** (seed % 24 - 14)
        values = values.to(dtype)
    if kind == "mixed":
        which = torch.randint(0, 3 * len(extremes), (n,), generator=generator)
        values = torch.where(
            which < len(extremes), extremes[which.clamp(max=len(extremes) - 1)], values
        )
    return values.view(U8)


def _extremes(dtype: torch.dtype) -> Tensor:
    info = torch.finfo(dtype)
    ends = (1.0, info.max, info.tiny, info.tiny / 2, info.smallest_normal * info.eps, math.inf)
    fixed = (0.0, 0.5, 2.0**30 - 256, 2.0**30, 2.0**31)
    return torch.tensor([math.nan, *(s * x for x in ends + fixed for s in (1, -1))], dtype=F64).to(
        dtype
    )


EXTREMES = {d: _extremes(d) for d in (F64, F32, BF16, F16)}
EXTREMES[I32] = torch.tensor(
    [s * x - d for x in (0, 1, 2**30 - 256, 2**30) for s in (1, -1) for d in (0, 1)]
    + [-(2**31), 1 - 2**31, 2**31 - 1],
    dtype=I32,
)
