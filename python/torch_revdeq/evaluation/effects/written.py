"""Tensors that f writes: buffers of its modules, closed-over tensors without gradient, arguments.

Running statistics, counters, codebooks. An evaluation in the backward pass writes them again, so
they are restored afterwards: every evaluation of the forward pass counts once. Versions do not show
every write (batch_norm does not increment them, nor does ``.data``), so values are copied in any
case, except large ones. Whether f reads what it writes shows when the first half step is evaluated
a second time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.utils.weak import WeakTensorKeyDictionary

from ...runtime.transforms import inside_transform
from .holdings import Holdings
from .naming import name_of

_SMALL = 2**16
"""Largest tensor, in elements, that is always copied. A larger one that f closes over is copied if
its version shows a write; a larger buffer also if the first evaluation was seen to write it."""

_LARGE = 2**20
"""Integer buffers with more elements are copied only if their version shows a write: they are the
weights of a quantized model."""

_seen: Any = WeakTensorKeyDictionary()
"""Whether f wrote large buffers, in training or evaluation mode. Determined only once: reading
megabytes in each solve may take longer than the solve."""


class Change(NamedTuple):
    """Something that f has written: its name, and whether f certainly reads it."""

    name: str
    to_read: bool = False


class Written:
    """The tensors that an evaluation of f could write."""

    def __init__(self, held: Holdings, since: Written | None = None) -> None:
        """Note each tensor, and its version: the current one, or the one noted in `since`."""
        self.modules = held.modules
        self.spaces: list[tuple[nn.Module, dict[str, Any]]] = []
        for module in held.modules:
            buffers = module.__dict__.get("_buffers")
            if buffers and type(buffers) in (dict, OrderedDict):
                self.spaces.append((module, buffers))
        self.loose = [t for t in held.tensors if not t.requires_grad]
        for module in held.scripted:
            self.loose += module.buffers(recurse=False)
        frozen = _frozen(held.modules)  # a momentum target, a codebook: kept if one was written
        self.frozen = set(map(id, frozen))
        self.loose += frozen
        self.slots = [
            (module, name, buffer)
            for module, space in self.spaces
            for name, buffer in space.items()
        ]
        self.versions = [-1 if is_lazy(b) else version_of(b) for *_, b in self.slots]
        self.loose_versions = [version_of(t) for t in self.loose]
        self.passed: list[tuple[Tensor, int]] = []  # arguments
        self.standing: list[tuple[dict[str, Any], str, Any]] = []
        self.values: list[Tensor] = []
        self.copies: list[tuple[Tensor, bool, Tensor]] = []  # during the first evaluation
        self.unwritten: set[int] = set()  # large buffers, by id
        if since is not None:
            tensors = [*(b for *_, b in since.slots), *since.loose]
            noted = dict(zip(map(id, tensors), since.versions + since.loose_versions, strict=True))
            self.versions = [noted.get(id(b), -1) for *_, b in self.slots]
            self.loose_versions = [noted.get(id(t), -1) for t in self.loose]
            self.unwritten = since.unwritten
            self.add(since.passed)

    def __bool__(self) -> bool:
        return bool(self.slots or self.loose)

    def add(self, passed: Sequence[tuple[Tensor, int]]) -> None:
        """Arguments that f was seen to write, and their versions before."""
        self.passed += passed
        self.loose += [tensor for tensor, _ in passed]
        self.loose_versions += [version for _, version in passed]

    def before_first(self) -> None:
        """Before the first evaluation: copy the large buffers not yet classified."""
        for module, _, buffer in self.slots:
            if buffer is None or is_lazy(buffer) or not _is_asked(buffer):
                continue
            mode = bool(module.training)
            known = _seen.get(buffer, {}).get(mode)
            if known is None:
                self.copies.append((buffer, mode, buffer.detach().clone()))
            elif not known:
                self.unwritten.add(id(buffer))

    def after_first(self) -> None:
        """After the first evaluation: find which of these it wrote. May wait for the device."""
        for buffer, mode, copy in self.copies:
            written = not torch.equal(buffer, copy)
            _seen.setdefault(buffer, {})[mode] = written
            if not written:
                self.unwritten.add(id(buffer))
        self.copies = []

    def changed(self, *, statistics: bool = False) -> list[Change]:
        """The writes detected since; `statistics`: including torch's own running statistics.

        A normalization layer in training writes running statistics that it does not read.
        """
        found: list[Change] = []
        for (module, name, buffer), version in zip(self.slots, self.versions, strict=True):
            now = module._buffers.get(name)
            if now is buffer and version_of(now) == version:
                continue
            if statistics or not isinstance(module, _NormBase):
                where = f"{name!r} in {type(module).__name__}"
                known = isinstance(module, _SpectralNorm) and module.training
                found.append(Change(where, known))
        for tensor, version in zip(self.loose, self.loose_versions, strict=True):
            if version_of(tensor) != version:
                what = f"a tensor of shape {tuple(tensor.shape)} that it closes over or was given"
                found.append(Change(name_of(tensor, self.modules) or what))
        return found

    def loose_changed(self) -> bool:
        """Whether a write to a tensor that is not a buffer was detected."""
        rows = zip(self.loose, self.loose_versions, strict=True)
        return any(version_of(tensor) != version for tensor, version in rows)

    def end(self) -> None:
        """After the forward pass: note which tensor is where, for ``kept``."""
        self.standing = [
            (space, name, space.get(name)) for _, space in self.spaces for name in space
        ]
        if inside_transform() or not (self.standing or self.loose):
            return  # inside a transform nothing outside it can be written
        rows = zip(self.slots, self.versions, strict=True)
        silent = {id(b) for (*_, b), version in rows if b is not None and version_of(b) == version}
        buffers = [b for *_, b in self.standing if b is not None and not is_lazy(b)]
        self.values = [
            b
            for b in buffers
            if id(b) not in silent
            or (id(b) not in self.unwritten and _is_sizable(b) and _can_be_written(b))
        ]
        for tensor, version in zip(self.loose, self.loose_versions, strict=True):
            small = tensor.numel() <= _SMALL and id(tensor) not in self.frozen
            silently = small and _can_be_written(tensor)
            if version_of(tensor) != version or silently:
                self.values.append(tensor)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Give f the buffers of the forward pass, and restore everything afterwards."""
        now = [(space, name, space.get(name)) for space, name, _ in self.standing]
        for space, name, buffer in self.standing:
            if space.get(name) is not buffer:
                space[name] = buffer
        try:
            with values_kept(self.values) if self.values else nullcontext():
                yield
        finally:
            for space, name, buffer in now:
                if space.get(name) is not buffer:
                    space[name] = buffer

    def large_kept(self) -> AbstractContextManager[None]:
        """Restore the large tensors that f closes over, except frozen parameters."""
        large = [
            tensor
            for tensor in self.loose
            if tensor.numel() > _SMALL and id(tensor) not in self.frozen and _can_be_written(tensor)
        ]
        return values_kept(large) if large else nullcontext()


@contextmanager
def values_kept(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Restore values and versions on exit, also after an exception.

    The versions too, because an outer graph may have saved one of these tensors.
    """
    saved = [torch.empty_like(t, requires_grad=False) for t in tensors]
    versions = [version_of(t) for t in tensors]
    with torch.no_grad():
        torch._foreach_copy_(saved, tensors)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        rows = [
            (tensor, value, version)
            for tensor, value, version in zip(tensors, saved, versions, strict=True)
            if tensor.shape == value.shape  # otherwise it was materialized
        ]
        targets, values, versions = ([*column] for column in zip(*rows, strict=True))
        with torch.no_grad():
            torch._foreach_copy_(targets, values)  # type: ignore[attr-defined]
        torch._C._autograd._unsafe_set_version_counter(  # type: ignore[attr-defined]
            tuple(targets), tuple(versions)
        )


@contextmanager
def buffers_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Restore the modules' buffers on exit, also after an exception."""
    held = Holdings()
    held.modules = list(modules)
    written = Written(held)
    written.end()
    with written.kept():
        yield


def _frozen(modules: Sequence[nn.Module]) -> list[Tensor]:
    """The parameters that do not require grad."""
    return [
        parameter
        for module in modules
        for parameter in (module.__dict__.get("_parameters") or {}).values()
        if type(parameter) is nn.Parameter and not parameter.requires_grad
    ]


def version_of(tensor: Tensor | None) -> int:
    """torch's count of writes to the tensor."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def _is_sizable(buffer: Tensor) -> bool:
    """Whether it is worth copying even if no version shows a write."""
    return buffer.is_floating_point() or buffer.numel() <= _LARGE


def _is_asked(buffer: Tensor) -> bool:
    """Whether a buffer is so large that it is copied only if f was seen to write it."""
    return (
        buffer.numel() > _SMALL
        and _is_sizable(buffer)
        and not buffer.is_meta
        and _can_be_written(buffer)
    )


def _can_be_written(tensor: Tensor) -> bool:
    """Whether an operation could write it without incrementing its version."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and not tensor.is_inference()
        and not tensor.requires_grad
        and torch._debug_has_internal_overlap(tensor) != 1  # type: ignore[attr-defined]
    )
