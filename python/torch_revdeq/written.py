"""What f writes: buffers of its modules, and tensors without a gradient that it closes over.

Running statistics, counters, codebooks. An evaluation on the way back writes them once more, and
they are put back afterwards: every evaluation of the forward pass counts once. Versions do not tell
all that was written (batch_norm counts none up, nor does ``.data``), so values are kept without
asking. Whether f reads what it writes shows when the first half step is evaluated a second time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _SpectralNorm

from .holdings import Holdings
from .transforms import inside_transform

_SMALL = 2**16
"""Elements of a closed-over tensor that is kept though its version says nothing of a write."""

_LARGE = 2**20
"""Elements of an integer buffer that is kept only if its version tells of a write: above, they are
weights of a quantized model."""


class Change(NamedTuple):
    """Something that f has written: what, whether in floating point, and certainly to read it."""

    name: str
    floating: bool
    to_read: bool = False


class Written:
    """The tensors that an evaluation of f could write."""

    def __init__(self, held: Holdings) -> None:
        """Note each of them, and its version."""
        self.spaces: list[tuple[nn.Module, dict[str, Any]]] = []
        for module in held.modules:
            buffers = module.__dict__.get("_buffers")
            if buffers and type(buffers) in (dict, OrderedDict):
                self.spaces.append((module, buffers))
        self.loose = [t for t in held.tensors if not t.requires_grad]
        for module in held.scripted:
            self.loose += module.buffers(recurse=False)
        self.slots = [
            (module, name, buffer)
            for module, space in self.spaces
            for name, buffer in space.items()
        ]
        self.versions = [-1 if is_lazy(b) else version_of(b) for *_, b in self.slots]
        self.loose_versions = [version_of(t) for t in self.loose]
        self.standing: list[tuple[dict[str, Any], str, Any]] = []
        self.values: list[Tensor] = []

    def __bool__(self) -> bool:
        return bool(self.slots or self.loose)

    def changed(self, *, statistics: bool = False) -> list[Change]:
        """What was seen to be written since, but for `statistics` of torch's own.

        A normalisation in training writes running statistics that it does not read.
        """
        found: list[Change] = []
        for (module, name, buffer), version in zip(self.slots, self.versions, strict=True):
            now = module._buffers.get(name)
            if now is buffer and version_of(now) == version:
                continue
            if statistics or not isinstance(module, _NormBase):
                where = f"{name!r} in {type(module).__name__}"
                known = isinstance(module, _SpectralNorm) and module.training
                found.append(Change(where, _is_wide(now), known))
        for tensor, version in zip(self.loose, self.loose_versions, strict=True):
            if version_of(tensor) != version:
                what = f"a tensor of shape {tuple(tensor.shape)} that it closes over"
                found.append(Change(what, _is_wide(tensor)))
        return found

    def loose_changed(self) -> bool:
        """Whether a tensor that is no buffer was seen to be written since."""
        rows = zip(self.loose, self.loose_versions, strict=True)
        return any(version_of(tensor) != version for tensor, version in rows)

    def end(self) -> None:
        """After the forward pass: note what stands where, for ``kept``."""
        self.standing = [
            (space, name, space.get(name)) for _, space in self.spaces for name in space
        ]
        if inside_transform() or not (self.standing or self.loose):
            return  # in a transform nothing outside of it can be written
        rows = zip(self.slots, self.versions, strict=True)
        silent = {id(b) for (*_, b), version in rows if b is not None and version_of(b) == version}
        buffers = [b for *_, b in self.standing if b is not None and not is_lazy(b)]
        self.values = [
            b
            for b in buffers
            if id(b) not in silent
            or ((b.is_floating_point() or b.numel() <= _LARGE) and _can_be_written(b))
        ]
        for tensor, version in zip(self.loose, self.loose_versions, strict=True):
            silently = tensor.numel() <= _SMALL and _can_be_written(tensor)
            if version_of(tensor) != version or silently:
                self.values.append(tensor)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Have f meet the buffers of the forward pass, and put everything back afterwards."""
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


@contextmanager
def values_kept(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Put values back as they were, whatever happens inside, and their versions with them.

    A graph outside may have saved one of these tensors. It holds what it held then.
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
            if tensor.shape == value.shape  # or it was materialized
        ]
        targets, values, versions = ([*column] for column in zip(*rows, strict=True))
        with torch.no_grad():
            torch._foreach_copy_(targets, values)  # type: ignore[attr-defined]
        torch._C._autograd._unsafe_set_version_counter(  # type: ignore[attr-defined]
            tuple(targets), tuple(versions)
        )


@contextmanager
def buffers_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put the buffers of the modules back as they were, whatever happens inside."""
    held = Holdings()
    held.modules = list(modules)
    written = Written(held)
    written.end()
    with written.kept():
        yield


def version_of(tensor: Tensor | None) -> int:
    """How often it was written, as far as torch counts that."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def _is_wide(tensor: Tensor | None) -> bool:
    return tensor is not None and (tensor.is_floating_point() or tensor.is_complex())


def _can_be_written(tensor: Tensor) -> bool:
    """Whether an operation could write it without counting its version up."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and not tensor.is_inference()
        and not tensor.requires_grad
        and torch._debug_has_internal_overlap(tensor) != 1  # type: ignore[attr-defined]
    )
