"""Run Gluon kernels in Triton's interpreter, which does not support Gluon, ignoring layouts.

``interpreted(module)`` is the module with its kernels in a form that the interpreter accepts.
Tensors are whole, so layouts have no effect; shared memory is an array; a wgmma or a TF32 product
is a float32 product of its factors. In addition to results, this checks rules that a GPU does not:
memory must be written before it is read, and fenced between the threads' stores and wgmma's reads;
numbers that go into 16 bits, or into a TF32 product, must already be rounded.
"""

from __future__ import annotations

import sys
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any
from weakref import WeakSet

import torch
import triton.language as tl
from triton.experimental.gluon._runtime import GluonJITFunction
from triton.runtime.interpreter import InterpretedFunction, TensorHandle

from revdeq_kernels.triton.device.half_step import widen

NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}


def interpreted(module: ModuleType) -> SimpleNamespace:
    """The module, whose functions call each other's interpreted form and the language below."""
    kernels = {k: v for k, v in vars(module).items() if isinstance(v, GluonJITFunction)}
    names: dict[str, Any] = {}
    for value in kernels.values():
        names |= vars(sys.modules[value.fn.__module__])
    names |= {"gl": _Language(), "fence_async_shared": _fence, "warpgroup_mma": _product}
    names |= {"mma_v2": _product_of_tf32}
    for name, value in list(names.items()):
        if isinstance(value, GluonJITFunction):
            fn = value.fn
            copy = FunctionType(fn.__code__, names, name, fn.__defaults__)
            names[name] = InterpretedFunction(copy)
            rewritten = names[name].rewrite()
            for parameter, kind in rewritten.__annotations__.items():
                rewritten.__annotations__[parameter] = kind.removeprefix("gl.")
    return SimpleNamespace(**names)


class _Shared:
    """Shared memory, a part of it, or a transposed view."""

    def __init__(self, kind: Any, shape: Any, parts: int | None = None) -> None:
        self.dtype, self.shape = kind, [tl.constexpr(n) for n in shape]
        self.cells = [_Cell() for _ in range(parts or 1)]
        self.order: tuple[int, ...] | None = None

    @property
    def cell(self) -> _Cell:
        assert len(self.cells) == 1, "which part?"
        return self.cells[0]

    def view(self, cell: _Cell, shape: Any) -> _Shared:
        other = _Shared(self.dtype, [n.value for n in shape])
        other.cells, other.order = [cell], self.order
        return other

    def index(self, part: Any) -> _Shared:
        number = part.handle.data.item() if isinstance(part, tl.tensor) else part
        return self.view(self.cells[number], self.shape[1:])

    def permute(self, order: Any) -> _Shared:
        other = self.view(self.cell, [self.shape[int(k)] for k in order])
        other.order = tuple(map(int, order))
        return other

    def store(self, value: Any) -> None:
        assert list(value.shape) == [n.value for n in self.shape], "of another shape"
        if value.dtype != self.dtype:  # as returned by device/cell.operand in the interpreter
            numbers = torch.from_numpy(value.handle.data)
            rounded = numbers.to(NARROW[self.dtype.name]).to(numbers.dtype)
            assert torch.equal(rounded.nan_to_num(), numbers.nan_to_num()), "it was not rounded"
        self.cell.value, self.cell.fenced = value, False

    def load(self, layout: Any) -> Any:
        assert self.cell.value is not None, "read before it is written"
        return self.cell.value if self.order is None else tl.permute(self.cell.value, self.order)

    def slice(self, start: Any, length: Any, dim: int) -> Any:
        """A part that is read immediately, and needs no memory of its own here."""
        begin, size = (n.value if isinstance(n, tl.constexpr) else n for n in (start, length))
        whole = self.load(None)
        assert begin + size <= whole.shape[dim], "beyond the end"
        part = whole.handle.data.take(range(begin, begin + size), dim)
        kind = tl.block_type(whole.dtype, list(part.shape))
        tensor = tl.tensor(TensorHandle(part, whole.dtype), kind)
        return SimpleNamespace(load=lambda layout: tensor)

    def factor(self) -> Any:
        assert self.cell.fenced, "wgmma reads what was stored since the last fence"
        return widen(self.load(None))


class _Cell:
    """The content of one place in memory."""

    def __init__(self) -> None:
        self.value: Any = None
        self.fenced = True
        _CELLS.add(self)


_CELLS: WeakSet[_Cell] = WeakSet()


class _Language:
    """triton.experimental.gluon.language: Triton's language, except for functions with layouts."""

    def __getattr__(self, name: str) -> Any:
        return _no_layout if name.endswith("Layout") else getattr(tl, name)

    @staticmethod
    def num_warps() -> int:
        return 8

    @staticmethod
    def arange(start: int, end: int, layout: Any) -> Any:
        return tl.arange(start, end)

    @staticmethod
    def zeros(shape: Any, kind: Any, layout: Any) -> Any:
        return tl.zeros(shape, kind)

    @staticmethod
    def full(shape: Any, value: float, kind: Any, layout: Any) -> Any:
        return tl.full([n.value for n in shape], value, kind)

    @staticmethod
    def convert_layout(x: Any, layout: Any) -> Any:
        return x

    @staticmethod
    def allocate_shared_memory(kind: Any, shape: Any, layout: Any, value: Any = None) -> _Shared:
        memory = _Shared(kind, shape[-2:], shape[0] if len(shape) == 3 else None)
        if len(shape) == 3:
            memory.shape = [tl.constexpr(n) for n in shape]
        if value is not None:
            memory.store(value)
        return memory


def _no_layout(*args: Any, **options: Any) -> None: ...


def _fence() -> None:
    for cell in _CELLS:
        cell.fenced = True


def _product_of_tf32(a: Any, b: Any, acc: Any, input_precision: str) -> Any:
    assert input_precision == "tf32"
    for factor in (a, b):
        low = factor.handle.data.view("int32") & 0x1FFF
        assert not low[factor.handle.data == factor.handle.data].any(), "not a number of TF32"
    return acc + tl.dot(a, b, input_precision="ieee")


def _product(a: _Shared, b: _Shared, acc: Any, use_acc: bool = True) -> Any:
    value = tl.dot(a.factor(), b.factor(), input_precision="ieee")
    return acc + value if use_acc else value
