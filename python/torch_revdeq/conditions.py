"""The conditions under which f is evaluated, so that the way back meets them again.

Autocast, random numbers, buffers that f writes, hooks on the tensors it reads: each is noted in the
forward pass, restored around an evaluation on the way back, and put back afterwards also where f
raises.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .mapping import FlatFunction
from .modules import modules_of
from .randomness import Randomness, Rng

# ---- autocast --------------------------------------------------------------------------------

AutocastState = tuple[tuple[str, bool, torch.dtype], ...]


def autocast_state(device: torch.device) -> AutocastState:
    """Autocast as it stands, for the CPU and for the device."""
    types = ("cpu",) if device.type == "cpu" else ("cpu", device.type)
    return tuple((t, torch.is_autocast_enabled(t), torch.get_autocast_dtype(t)) for t in types)


@contextmanager
def autocast(state: AutocastState) -> Iterator[None]:
    """Autocast as it stood, without its cache of weights.

    A cached cast would tie the graphs of all half steps together, and add their gradients in low
    precision.
    """
    with ExitStack() as stack:
        for device_type, enabled, dtype in state:
            stack.enter_context(
                torch.autocast(device_type, dtype=dtype, enabled=enabled, cache_enabled=False)
            )
        yield


# ---- buffers ---------------------------------------------------------------------------------


class Buffers:
    """The buffers of f's modules: which of them an evaluation writes."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        """Note every buffer and its version."""
        self.slots = [
            (module, name, buffer, buffer._version)
            for module in modules
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def written(self) -> list[tuple[nn.Module, str]]:
        """Those that a replay must put back; RuntimeError where f may read what it wrote.

        A normalisation in training writes running statistics that it does not read, and counters
        of integers are taken for the same.
        """
        found: list[tuple[nn.Module, str]] = []
        for module, name, buffer, version in self.slots:
            now = module._buffers.get(name)
            changed = now is not buffer or buffer._version != version
            if isinstance(module, _NormBase):
                # batch_norm writes its statistics without counting their versions up.
                if module.training and module.track_running_stats:
                    found.append((module, name))
            elif changed and buffer.is_floating_point():
                raise RuntimeError(
                    f"f: expected to leave its buffers as they are, got a change of {name!r} in "
                    f"{type(module).__name__}, which a replay of f would read; put the module in "
                    "eval mode, or choose adjoint='backprop', which replays nothing"
                )
            elif changed:
                found.append((module, name))
        return found


@contextmanager
def buffers_kept(slots: Sequence[tuple[nn.Module, str]]) -> Iterator[None]:
    """Put buffers back as they were, whatever happens inside."""
    saved = [(m, name, m._buffers[name]) for m, name in slots]
    values = [None if buffer is None else buffer.detach().clone() for *_, buffer in saved]
    try:
        yield
    finally:
        with torch.no_grad():
            for (module, name, buffer), value in zip(saved, values, strict=True):
                module._buffers[name] = buffer
                if buffer is not None and value is not None:
                    buffer.copy_(value)


# ---- hooks -----------------------------------------------------------------------------------


class _Masked:
    """Hooks that are out of the way while some replay runs, counted over threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.taken: dict[int, tuple[int, Any, list[Any]]] = {}

    def take(self, hooks: Any) -> None:
        with self.lock:
            count, _, items = self.taken.get(id(hooks), (0, hooks, []))
            self.taken[id(hooks)] = (count + 1, hooks, [*items, *hooks.items()])
            hooks.clear()

    def give_back(self, hooks: Any) -> None:
        with self.lock:
            count, _, items = self.taken.pop(id(hooks))
            if count > 1:
                self.taken[id(hooks)] = (count - 1, hooks, items)
                return
            late = list(hooks.items())
            hooks.clear()
            hooks.update([*items, *late])


_masked = _Masked()


@contextmanager
def hooks_masked(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Keep tensor hooks from running inside: they are for the whole gradient, not for its parts."""
    hooked = [t._backward_hooks for t in tensors if t._backward_hooks]
    for hooks in hooked:
        _masked.take(hooks)
    try:
        yield
    finally:
        for hooks in hooked:
            _masked.give_back(hooks)


# ---- all of them -----------------------------------------------------------------------------


class Evaluation:
    """f as the solver evaluates it: half step k of a solve, forward or again on the way back."""

    def __init__(self, mapping: FlatFunction, device: torch.device, rng: Rng) -> None:
        """Note the conditions of the forward pass."""
        self.mapping = mapping
        self.modules = modules_of(mapping.f)
        self.autocast = autocast_state(device)
        self.random = Randomness(device, rng)
        self.buffers: Buffers | None = Buffers(self.modules)
        self.written: list[tuple[nn.Module, str]] = []
        self.device = device
        self.switch_autocast = False

    def __call__(self, k: int, leaves: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
        """f in half step k, inside of ``forward`` or ``replay``."""
        versions = [_version(leaf) for leaf in leaves]
        if self.random.active:
            self.random.set(k)
        try:
            if self.switch_autocast:
                with autocast(self.autocast):
                    out = self.mapping(leaves, tensors, k >> 1)
            else:
                out = self.mapping(leaves, tensors, k >> 1)
        except RuntimeError as error:
            if "leaf Variable that requires grad" not in str(error):
                raise
            raise changed_in_place() from error
        if versions != [_version(leaf) for leaf in leaves]:
            raise changed_in_place()
        if k == 0 and self.buffers is not None:
            self.random.observe_first()
        return out

    def _enter(self) -> None:
        """Before evaluations, forward or on the way back."""
        _settle_threads()
        now = autocast_state(self.device)
        self.switch_autocast = any(on for _, on, _ in (*self.autocast, *now))

    @contextmanager
    def forward(self, *, replayed: bool) -> Iterator[None]:
        """Around the forward pass: the generators go on from where the first half step left them.

        `replayed`: f will be evaluated again, and may not read a buffer that it writes.
        """
        self._enter()
        try:
            yield
            if replayed and self.buffers is not None:
                self.written = self.buffers.written()
        finally:
            self.buffers = None
            if self.random.active:
                self.random.restore(self.random.after)

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Inside of ``forward``, around evaluations that come a second time: buffers stay."""
        slots = [] if self.buffers is None else self.buffers.slots
        with buffers_kept([(module, name) for module, name, *_ in slots]):
            yield

    @contextmanager
    def replay(self, leaves: Sequence[Tensor]) -> Iterator[None]:
        """Around the way back, which leaves nothing of itself behind; `leaves` lose their hooks."""
        self._enter()
        with ExitStack() as stack:
            if any(leaf._backward_hooks for leaf in leaves):
                stack.enter_context(hooks_masked(leaves))
            if self.written:
                stack.enter_context(buffers_kept(self.written))
            if self.random.active:
                stack.callback(self.random.restore, self.random.states())
            yield


def changed_in_place() -> RuntimeError:
    """f wrote into what it was given."""
    return RuntimeError(
        "f: expected to leave its state as it is, and its arguments and parameters, got a change "
        "in place; begin f with an operation that makes a new tensor"
    )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _settle_threads() -> None:
    """Let this thread take on torch's number of threads now.

    A new thread does so only in the middle of its first operations. Matrix products before and
    after would have other bits.
    """
    torch.get_num_threads()


Evaluate = Callable[[int, Sequence[Tensor]], list[Tensor]]
"""f in half step k of the given leaves, as one way of differentiating wants it evaluated."""
