"""Memory layout of tensors: dense tensors, the order of their elements, and overlap."""

from __future__ import annotations

import torch
from torch import Tensor

_DISPATCH = "__torch_dispatch__"  # as a name, type checkers do not know it


def memory_order(t: Tensor) -> Tensor:
    """A one-dimensional view of a dense tensor, in the order of its memory."""
    return t.as_strided((t.numel(),), (1,))


def same_strides(a: Tensor, b: Tensor) -> bool:
    """Whether both have the same strides, ignoring dimensions of size 1."""
    if a.numel() == 0:
        return True
    pairs = zip(a.shape, a.stride(), b.stride(), strict=True)
    return all(size == 1 or x == y for size, x, y in pairs)


def is_dense(t: Tensor) -> bool:
    """Whether the tensor fills its span of memory without gaps, its dimensions in any order."""
    if t.numel() == 0 or t.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def meet(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors may share a byte of memory."""
    if not (has_memory(a) and has_memory(b)):
        return False
    (begin, end), (other_begin, other_end) = _span(a), _span(b)
    return begin < other_end and other_begin < end


def has_memory(t: Tensor) -> bool:
    """Whether the tensor has data at an address that can be compared.

    Fake, meta and traced tensors have none. Neither do subclasses with their own dispatch, whose
    data may be elsewhere.
    """
    plain = getattr(type(t), _DISPATCH) is getattr(Tensor, _DISPATCH)
    return plain and t.device.type != "meta" and not torch._is_functional_tensor(t)  # type: ignore[attr-defined]


def _span(t: Tensor) -> tuple[int, int]:
    if t.numel() == 0:
        return t.data_ptr(), t.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()
