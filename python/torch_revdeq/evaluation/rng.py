"""Replay of f's random numbers in the backward pass, in memory that does not grow with depth.

The first half step draws from the generators in their current state, which is kept. If it drew
anything, every later half step runs with generators seeded from one number, drawn once per solve,
and its own index. An f that draws nothing costs one comparison and changes nothing.
"""

from __future__ import annotations

import threading
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

Rng: TypeAlias = Literal["auto", "shared", "none"]
RNG = ("auto", "shared", "none")

_GOLDEN = 0x9E3779B97F4A7C15
_SEEDS = 2**62


class RngReplay:
    """The default generators of the CPU and of the state's device, during one solve."""

    def __init__(self, device: torch.device, rng: Rng) -> None:
        """Note the state of the generators, unless nothing will be replayed."""
        self.device, self.shared = device, rng == "shared"
        self.on_cpu = device.type in ("cpu", "meta")
        self.active = False
        self.base = 0
        self.first = self.states() if rng != "none" else []
        self.after = self.first

    def generators(self) -> list[Any]:
        """The default generators that f can draw from without naming one."""
        if self.on_cpu:
            return [torch.default_generator]
        return [torch.default_generator, _generator(self.device)]

    def states(self) -> list[Tensor]:
        """The states of the generators."""
        return [generator.get_state() for generator in self.generators()]

    def restore(self, states: list[Tensor]) -> None:
        """Restore the generators to these states."""
        if states:
            for generator, state in zip(self.generators(), states, strict=True):
                generator.set_state(state)

    def begin_here(self) -> None:
        """Begin the solve at the current state of the generators."""
        if self.first:
            self.first = self.after = self.states()

    def observe_first(self) -> None:
        """After the first half step: if it drew, replay all of them from here on."""
        if not self.first:
            return
        now = self.states()
        self.active = not all(map(torch.equal, now, self.first))
        if self.active:
            # Drawn on the CPU, without waiting for a device.
            self.base = int(torch.randint(0, _SEEDS, (), dtype=torch.int64, device="cpu"))
            self.after = self.states()

    def check_late(self) -> None:
        """RuntimeError if f drew nothing in the first half step, but something in a later one.

        The generators are shared: if other threads run, the draw may be theirs, so the check in the
        backward pass has to decide.
        """
        if not self.first or self.active or all(map(torch.equal, self.states(), self.first)):
            return
        if not _has_company():
            raise RuntimeError(
                "f: expected to draw random numbers in its first evaluation if it draws any, got "
                "its first draw in a later one, which would not be replayed; draw one number in "
                "the first evaluation too, torch.rand(()), or choose adjoint='backprop'"
            )

    def set(self, half_step: int) -> None:
        """Set the generators to their states for this half step."""
        if half_step == 0 or self.shared:
            self.restore(self.first)
            return
        seed = (self.base + _GOLDEN * half_step) % _SEEDS
        for generator in self.generators():
            generator.manual_seed(seed)


def _has_company() -> bool:
    """Whether other threads run, not counting helper threads of libraries."""
    own = threading.current_thread()
    return any(thread is not own and not thread.daemon for thread in threading.enumerate())


def _generator(device: torch.device) -> Any:
    """The default generator of a device other than the CPU."""
    module: Any = torch.get_device_module(device)
    generators = getattr(module, "default_generators", None)
    if generators is None:
        return _OfModule(module)
    return generators[module.current_device() if device.index is None else device.index]


class _OfModule:
    """The generator of a device whose module, like torch.mps, does not expose it."""

    def __init__(self, module: Any) -> None:
        self.get_state, self.set_state = module.get_rng_state, module.set_rng_state
        self.manual_seed = module.manual_seed
