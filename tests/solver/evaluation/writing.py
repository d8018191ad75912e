"""What f may write while it is evaluated, and how to read what it wrote: one row each."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.solver.cells import Normed, TwoMaps


@dataclass(frozen=True)
class Written:
    """f(z, x, *args), which does not read what it writes."""

    f: Callable[..., Any]
    counted: Callable[[], Any]
    """The evaluations that it counted."""
    read: Callable[[], Any] = tuple
    """Everything else that it wrote."""
    args: tuple[Any, ...] = ()


def buffers_of(module: nn.Module) -> Callable[[], list[Tensor]]:
    return lambda: list(module.buffers())


# ---- statistics ----------------------------------------------------------------------------------


class Statistics(TwoMaps):
    """Writes statistics in one of several ways, and a counter in place."""

    mean: Tensor
    var: Tensor
    count: Tensor
    later: Tensor | None

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("mean", torch.zeros(16))
        self.register_buffer("var", torch.ones(16))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("later", None)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        out = super().forward(z, x)
        mean = out.detach().mean(0)
        self.count += 1.0
        if self.how == "batch_norm":
            return nn.functional.batch_norm(out, self.mean, self.var, training=True)
        if self.how == "data":
            self.mean.data.mul_(0.9).add_(mean, alpha=0.1)
        elif self.how == "no_grad":
            with torch.no_grad():
                self.mean.mul_(0.9).add_(mean, alpha=0.1)
        elif self.how == "reassigned":
            self.mean = 0.9 * self.mean + 0.1 * mean
        elif self.how == "first set":
            self.later = mean if self.later is None else self.later + mean
        return out


def statistics(how: str) -> Written:
    f = Statistics(how)
    return Written(f, lambda: f.count, buffers_of(f))


def normed(call: Callable[[Normed], Callable[..., Any]]) -> Written:
    module = Normed()
    return Written(call(module), lambda: module.norm.num_batches_tracked, buffers_of(module))


def of_first(module: nn.Module, z: Tensor, x: Tensor) -> Tensor:
    return module(z, x)


def tensors_of_a_closure() -> Written:
    linear, mean, var = nn.Linear(16, 16), torch.zeros(16), torch.ones(16)
    space = types.SimpleNamespace(total=torch.zeros(16), count=torch.zeros(()))

    def f(z: Tensor, x: Tensor) -> Tensor:
        out = nn.functional.batch_norm(linear(z) + x, mean, var, training=True)
        space.total += out.detach().sum(0)
        space.count += 1
        return torch.tanh(out)

    return Written(f, lambda: space.count, lambda: [mean, var, space.total])


def module_among_arguments() -> Written:
    net = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16))
    norm: Any = net[1]
    return Written(
        lambda z, x, held: torch.tanh(held["net"][0](z) + x),
        lambda: norm.num_batches_tracked,
        buffers_of(net),
        ({"net": [net]},),
    )


def scripted() -> Written:
    net: Any = torch.jit.script(nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16)))
    counted = lambda: dict(net.named_buffers())["1.num_batches_tracked"]  # noqa: E731
    return Written(lambda z, x: torch.tanh(net(z) + x), counted, buffers_of(net))


class Target(TwoMaps):
    """A momentum copy of a map, in frozen parameters that f updates."""

    def __init__(self, *, read: bool = False) -> None:
        super().__init__()
        self.target, self.read, self.count = nn.Linear(16, 16).requires_grad_(False), read, 0

    def forward(self, z: Tensor, x: Tensor) -> Any:
        self.count += 1
        with torch.no_grad():
            self.target.weight.lerp_(self.of_z.weight + 1, 0.1)
        h = super().forward(z, x)
        return h + 0.1 * self.target(z) if self.read else h


def frozen_parameter() -> Written:
    f = Target()
    return Written(f, lambda: f.count, lambda: [f.target.weight.clone()])


# ---- attributes and containers -------------------------------------------------------------------


class Counting(TwoMaps):
    """Counts in attributes of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.last, self.log, self.recent = 0, None, [], deque(maxlen=3)
        self.seen, self.totals, self.object = set(), {"calls": 0}, types.SimpleNamespace(n=0)
        self.same_log = self.log

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        out = super().forward(z, x)
        self.calls += 1
        self.last = out.detach().sum()
        self.log.append(float(out.detach().sum()))
        self.recent.append(self.calls)
        self.seen.add(self.calls)
        self.totals["calls"] += 1
        self.totals[f"call {self.calls}"] = self.calls
        self.object.n += 1
        return out


def attributes() -> Written:
    f = Counting()

    def read() -> list[Any]:
        assert f.log is f.same_log and len(f.log) == f.calls
        return [f.last, f.log, list(f.recent), sorted(f.seen), f.totals, f.object.n]

    return Written(f, lambda: f.calls, read)


class Crowded(TwoMaps):
    """Counts in places whose elements are not compared, and in its class."""

    total = 0

    def __init__(self) -> None:
        super().__init__()
        self.log: list[float] = [0.0] * 20_000
        self.recent, self.by_call = deque(self.log), dict.fromkeys(range(20_000), 0.0)
        self.counts = np.zeros(16)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        out = super().forward(z, x)
        mean = out.detach().mean(0)
        self.log.append(float(mean[0]))
        self.recent.append(float(mean[0]))
        self.by_call[len(self.by_call)] = float(mean[0])
        self.counts += mean.numpy()
        Crowded.total += 1
        return out


def long_logs() -> Written:
    f, before = Crowded(), Crowded.total

    def read() -> list[Any]:
        return [f.log, list(f.recent), list(f.by_call.items()), f.counts.tolist()]

    return Written(f, lambda: Crowded.total - before, read)


def variable_of_a_closure() -> Written:
    calls, linear = 0, nn.Linear(16, 16)

    def f(z: Tensor, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.tanh(linear(z) + x)

    return Written(f, lambda: calls)


CALLS = 0


def counting_globally(z: Tensor, x: Tensor) -> Tensor:
    global CALLS
    CALLS += 1
    return torch.tanh(0.5 * z + x)


def global_variable() -> Written:
    before = CALLS
    return Written(counting_globally, lambda: CALLS - before)


class WithSlots:
    __slots__ = ("calls", "net")

    def __init__(self) -> None:
        self.calls, self.net = 0, nn.Linear(16, 16)

    def __call__(self, z: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(self.net(z) + x)


def slots() -> Written:
    f = WithSlots()
    return Written(f, lambda: f.calls)


ALL = ("reversible", "hooks", "checkpoint", "functional")
BUT_FUNCTIONAL = ALL[:3]
"""This adjoint raises for a function that closes over parameters."""
WITHOUT_VERSIONS = ("reversible", "functional")
"""The other adjoints detect that a frozen parameter saved by autograd has changed, and raise."""

WRITTEN: dict[str, tuple[Callable[[], Written], tuple[str, ...]]] = {
    "batch_norm": (lambda: statistics("batch_norm"), ALL),
    "a buffer through .data": (lambda: statistics("data"), ALL),
    "a buffer under no_grad": (lambda: statistics("no_grad"), ALL),
    "a buffer that is assigned": (lambda: statistics("reassigned"), ALL),
    "a buffer that is None at first": (lambda: statistics("first set"), ALL),
    "a frozen parameter": (frozen_parameter, WITHOUT_VERSIONS),
    "attributes and containers": (attributes, ALL),
    "long logs, arrays and a class": (long_logs, ALL),
    "BatchNorm": (lambda: normed(lambda module: module), ALL),
    "BatchNorm of a method": (lambda: normed(lambda module: module.forward), BUT_FUNCTIONAL),
    "BatchNorm of a partial": (
        lambda: normed(lambda module: partial(of_first, module)),
        BUT_FUNCTIONAL,
    ),
    "BatchNorm of a lambda": (
        lambda: normed(lambda module: lambda z, x: 1.0 * module(z, x)),
        BUT_FUNCTIONAL,
    ),
    "a scripted module": (scripted, BUT_FUNCTIONAL),
    "a module among the arguments": (module_among_arguments, BUT_FUNCTIONAL),
    "tensors of a closure": (tensors_of_a_closure, BUT_FUNCTIONAL),
    "a variable of a closure": (variable_of_a_closure, BUT_FUNCTIONAL),
    "a global variable": (global_variable, ALL),
    "an object with slots": (slots, BUT_FUNCTIONAL),
}
"""What f writes, and the adjoints with which it may do so."""
