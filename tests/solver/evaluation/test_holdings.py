"""The search for what f holds: where modules hide, what it leaves alone, and that it ends."""

from __future__ import annotations

import functools
import gc
import operator
import types
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_revdeq.evaluation.effects.holdings import search
from torch_revdeq.evaluation.effects.modules import modules_of

GLOBAL = nn.Linear(2, 2)
SPACE = types.SimpleNamespace(net=nn.Linear(2, 2))


class Holder:
    """A callable that is no module."""

    shared = nn.Linear(2, 2)

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, z: Tensor) -> Tensor:
        return self.net(z)

    def method(self, z: Tensor) -> Tensor:
        return self.net(z)


class Slotted:
    __slots__ = ("empty", "net")

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, z: Tensor) -> Tensor:
        return self.net(z)


@dataclass
class Data:
    net: nn.Module

    def __call__(self, z: Tensor) -> Tensor:
        return self.net(z)


class Module(nn.Module):
    def __init__(self, **held: Any) -> None:
        super().__init__()
        for name, value in held.items():
            object.__setattr__(self, name, value)


def closing_over(held: Any) -> Callable[..., Any]:
    return lambda z: (z, held)


def wrapped(net: nn.Module) -> Callable[..., Any]:
    def inner(z: Tensor) -> Tensor:
        return net(z)

    @functools.wraps(inner)
    def outer(*args: Any) -> Any:
        return args

    return outer


def hooked(net: nn.Module, register: str) -> nn.Module:
    module = nn.Linear(2, 2)
    getattr(module, register)(lambda *args: net)
    return module


def keyword(net: nn.Module) -> Callable[..., Any]:
    def f(z: Tensor, *, layer: nn.Module = net) -> Tensor:
        return layer(z)

    return f


def attribute(net: nn.Module) -> Callable[..., Any]:
    def f(z: Tensor) -> Tensor:
        return f.net(z)

    f.net = net
    return f


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "itself": lambda net: net,
    "a closure": lambda net: lambda z: -net(z),
    "a default": lambda net: lambda z, layer=net: layer(z),
    "a keyword default": keyword,
    "an attribute of a function": attribute,
    "a list in a closure": lambda net: closing_over([net]),
    "a dict in a closure": lambda net: closing_over({"a": net}),
    "a plain object": Holder,
    "a method of a plain object": lambda net: Holder(net).method,
    "the call of a plain object": lambda net: Holder(net).__call__,
    "an object with slots": Slotted,
    "a dataclass": Data,
    "a namespace": lambda net: closing_over(types.SimpleNamespace(net=net)),
    "an object in an object": lambda net: Holder(Module(helper=Holder(net))),
    "partial": lambda net: functools.partial(lambda layer, z: layer(z), net),
    "a keyword of partial": lambda net: functools.partial(lambda z, layer: layer(z), layer=net),
    "partialmethod": lambda net: functools.partialmethod(lambda s, layer: layer, net),
    "functools.wraps": wrapped,
    "lru_cache": lambda net: functools.lru_cache(closing_over(net)),
    "methodcaller": lambda net: operator.methodcaller("apply_", net),
    "a list of a module": lambda net: Module(layers=[net]),
    "a dict of a module": lambda net: Module(layers={"a": (net,)}),
    "a deque of a module": lambda net: Module(layers=deque([net])),
    "an object of a module": lambda net: Module(helper=Holder(net)),
    "a weak reference": lambda net: Module(parent=weakref.ref(net)),
    "a forward hook": lambda net: hooked(net, "register_forward_hook"),
    "a forward pre-hook": lambda net: hooked(net, "register_forward_pre_hook"),
    "a compiled module": torch.compile,
    "a compiled function": lambda net: torch.compile(closing_over(net)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_module_is_found(way: str) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    found = {id(module) for module in modules_of(WAYS[way](net))}
    assert {id(module) for module in net.modules()} <= found


def test_globals_that_a_function_names() -> None:
    def helper(z: Tensor) -> Tensor:
        return SPACE.net(z)

    assert GLOBAL in modules_of(lambda z: -GLOBAL(z))
    assert GLOBAL in modules_of(lambda zs: [GLOBAL(z) for z in zs])  # in a function of its own
    assert SPACE.net in modules_of(lambda z: -helper(z))
    assert GLOBAL not in modules_of(lambda z: z)


def test_class_attributes() -> None:
    assert Holder.shared in modules_of(Holder(nn.Linear(2, 2)))


def test_the_order_is_that_of_modules() -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))
    tied = nn.Sequential(net, net[0])
    assert modules_of(tied) == list(tied.modules())


def test_scripted_modules() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert scripted in modules_of(lambda z: -scripted(z))
    assert len(modules_of(nn.Sequential(scripted, nn.Linear(2, 2)))) == 5


class Hostile:
    """An object that must not be asked for anything."""

    net = nn.Linear(2, 2)

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"the search asked for {name}")

    def __call__(self, z: Tensor) -> Tensor:
        return z


class HostileList(list):
    def __iter__(self) -> Any:
        raise AssertionError("the search went through a list of its own kind")

    def __len__(self) -> int:
        raise AssertionError("the search asked for a length")


class HostileModule(nn.Module):
    @property
    def costly(self) -> int:
        raise AssertionError("the search asked for a property")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the search asked for {name}")


def test_no_code_of_the_users_runs() -> None:
    net = nn.Linear(2, 2)
    assert Hostile.__dict__["net"] in modules_of(Hostile())
    held = HostileList()
    list.append(held, net)
    assert net in modules_of(closing_over(held))
    module = HostileModule()
    assert modules_of(module) == [module]


def test_what_holds_f_is_not_looked_into() -> None:
    class Ring:
        pass

    a, b = Ring(), Ring()
    a.other, b.other = b, a  # type: ignore[attr-defined]
    a.generator, a.dtype = torch.Generator(), torch.float32  # type: ignore[attr-defined]
    assert search([a]).modules == []


def test_it_is_bounded() -> None:
    class Node:
        pass

    first = last = Node()
    for _ in range(50_000):
        last.next = Node()  # type: ignore[attr-defined]
        last = last.next  # type: ignore[attr-defined]
    assert len(search([Module(chain=first)]).spaces) < 2_000
    assert len(search([first]).spaces) < 20_000
    numbers = list(range(100_000))
    assert search([closing_over(numbers)]).containers == []


class Classy(nn.Module):
    box: Any = None


def test_what_was_assigned_since_is_found() -> None:
    """What is remembered of classes is no value: it may be another one in the next search."""
    linear, module, net = nn.Linear(2, 2), Classy(), nn.BatchNorm1d(2)
    owner: Any
    for owner in (linear, module, Classy):
        owner.box = None
        assert net not in search([linear, module]).modules
        owner.box = [net]
        assert net in search([linear, module]).modules
        owner.box = None
    other: Any = nn.Linear(2, 2)
    other.another = [net]  # as many attributes, of other names
    assert net in search([other]).modules


def test_nothing_of_a_class_is_held() -> None:
    tensor = torch.zeros(2)
    Classy.box = tensor
    assert any(t is tensor for t in search([Classy()]).tensors)
    Classy.box, kept = None, weakref.ref(tensor)
    del tensor
    gc.collect()
    assert kept() is None
