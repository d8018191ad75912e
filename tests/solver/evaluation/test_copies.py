"""Copies of a layer: averages of weights, process groups, files, functions that copies share."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.solver.cells import MLP
from torch_revdeq import RevDEQ

GLOBAL = nn.Linear(16, 16)


def inputs() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(6, 16)


def applied(cell: nn.Module, z: Tensor, x: Tensor) -> Tensor:
    return cell(z, x)


def of_a_global(z: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(GLOBAL(z) + x)


class Method(nn.Module):
    """A model whose f is a method of it."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = MLP()
        self.layer = RevDEQ(self.call, max_steps=3)

    def call(self, z: Tensor, x: Tensor) -> Tensor:
        return self.cell(z, x)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Partial(Method):
    def __init__(self) -> None:
        super().__init__()
        self.layer = RevDEQ(partial(applied, self.cell), max_steps=3)


class Closed(Method):
    def __init__(self) -> None:
        super().__init__()
        self.layer = RevDEQ(lambda z, x: -self.cell(z, x), max_steps=3)


@pytest.mark.parametrize("make", [lambda: RevDEQ(MLP(), max_steps=3), Method, Partial])
def test_a_copy_has_weights_of_its_own(make: Any) -> None:
    model, x = make(), inputs()
    other = copy.deepcopy(model)
    z = model(x)
    assert torch.equal(other(x), z)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    assert torch.equal(other(x), z) and not torch.equal(model(x), z)
    z = other(x)
    z.sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in other.parameters())


@pytest.mark.parametrize("make", [lambda: RevDEQ(MLP(), max_steps=3), Method, Partial])
def test_an_average_of_weights(make: Any) -> None:
    model, x = make(), inputs()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    averaged.update_parameters(model)
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    averaged.update_parameters(model)
    want = make()
    with torch.no_grad():
        for p, old in zip(want.parameters(), before, strict=True):
            p.copy_(0.75 * old)
    assert torch.equal(averaged(x), want(x))  # halves of floats are exact: one rounding in both


def test_a_function_that_closes_over_modules_is_refused() -> None:
    weight = torch.ones(16, requires_grad=True)
    cell = MLP()
    functions = {
        "MLP": lambda z, x: -cell(z, x),
        "Linear": of_a_global,
        "a tensor that requires grad": lambda z, x: torch.tanh(weight * z + x),
    }
    for name, f in functions.items():
        for of in (f, partial(f), partial(applied, f)):
            with pytest.raises(TypeError, match=f"^f: expected to be copied.*{name}.*partial"):
                copy.deepcopy(RevDEQ(of))
    with pytest.raises(TypeError, match="Closed"):
        AveragedModel(Closed())
    assert isinstance(copy.copy(RevDEQ(functions["MLP"])), RevDEQ)  # a shallow copy shares f


class Held(nn.Module):
    """An f that holds a function, in one place or another."""

    def __init__(self, where: str, function: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        function = function or (lambda z: self.linear(z) * 0.5)
        self.step: Any = torch.tanh
        self.steps: list[Any] = []
        self.object = types.SimpleNamespace(step=None)
        self.child = nn.Module()
        if where == "attribute":
            self.step = function
        elif where == "list":
            self.steps = [{"steps": (function,)}]
        elif where == "object":
            self.object.step = partial(function)
        else:
            self.child.step = function

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        steps = [self.step, self.object.step, getattr(self.child, "step", None)]
        steps += [self.steps[0]["steps"][0]] if self.steps else []
        for step in filter(None, steps):
            z = step(z)
        return torch.tanh(z + x)


@pytest.mark.parametrize("where", ["attribute", "list", "object", "submodule"])
def test_a_function_that_f_holds_is_refused_where_it_closes_over_modules(where: str) -> None:
    f, x = Held(where, None), inputs()
    for of in (f, f.forward, partial(applied, f)):
        with pytest.raises(TypeError, match=r"^f: expected to be copied.*Held.*partial"):
            copy.deepcopy(RevDEQ(of))
    layer = RevDEQ(Held(where, nn.functional.silu))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    layer.f.register_forward_hook(lambda *_: layer.f.linear and None)  # which only watches
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_a_compiled_f_is_copied() -> None:
    for compiled in (torch.compile(MLP(), backend="eager"), MLP()):
        if isinstance(compiled, MLP):
            compiled.compile(backend="eager")
        layer, x = RevDEQ(compiled), inputs()
        assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_a_function_that_holds_nothing_is_copied() -> None:
    layer, x = RevDEQ(lambda z, x: torch.tanh(0.5 * z + x)), inputs()
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_a_learned_beta_is_copied() -> None:
    layer = RevDEQ(MLP(), beta=nn.Parameter(torch.tensor(0.6)), max_steps=3)
    other = copy.deepcopy(layer)
    assert other.beta is not layer.beta and torch.equal(other.beta, layer.beta)
    assert "beta" in dict(other.named_parameters())
    shared = nn.ModuleList([layer, layer])
    both = copy.deepcopy(shared)
    assert both[0] is both[1]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Any]:
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_a_process_group_is_shared_by_copies_and_left_out_of_files(group: Any) -> None:
    layer, x = RevDEQ(MLP(), tol=1e-3, process_group=group, max_steps=5), inputs()
    z = layer(x)
    copies: list[Any] = [copy.deepcopy(layer), copy.copy(layer), AveragedModel(layer).module]
    for other in copies:
        assert other.options["process_group"] is group
        assert torch.equal(other(x), z)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (torch.load(file, weights_only=False), pickle.loads(pickle.dumps(layer))):
        with pytest.raises(ValueError, match=r"^process_group: expected to be set again"):
            other(x)
        assert "left out" in repr(other)
        again = pickle.loads(pickle.dumps(copy.deepcopy(other)))
        for given in (group, None):
            again.options["process_group"] = given
            assert torch.equal(again(x), z)
    assert layer.options["process_group"] is group


# ---- functions that pickle does not find -----------------------------------------------------


@pytest.fixture
def only_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the picklers that can save any function."""
    for name in [n for n in sys.modules if n.rpartition(".")[2] in ("cloudpickle", "dill")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("name", ["f", "beta", "max_steps", "on_step"])
@pytest.mark.usefixtures("only_pickle")
def test_a_function_without_a_name_of_its_own_is_not_saved(name: str) -> None:
    local: dict[str, Any] = {"f": MLP(), name: lambda *_: 3}
    layer = RevDEQ(local.pop("f"), **local)
    for save in (partial(torch.save, nn.Sequential(layer)), partial(pickle.dump, layer)):
        with pytest.raises(
            (AttributeError, pickle.PicklingError),
            match=rf"^{name}: expected a function .*<lambda>; .*at the top level .*state_dict\(\)",
        ):
            save(io.BytesIO())
    torch.save(layer.state_dict(), io.BytesIO())
    assert pickle.loads(pickle.dumps(RevDEQ(of_a_global, max_steps=3))).f is of_a_global


@pytest.mark.usefixtures("only_pickle")
def test_a_pickler_that_saves_any_function_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class AnyFunction(pickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            return (str, ("saved",)) if isinstance(value, types.FunctionType) else NotImplemented

    monkeypatch.setitem(sys.modules, "cloudpickle", types.ModuleType("cloudpickle"))
    file = io.BytesIO()
    AnyFunction(file).dump(RevDEQ(lambda z, x: z))
    assert pickle.loads(file.getvalue()).f == "saved"


def test_a_subclass_may_leave_f_out() -> None:
    layer = WithoutF(lambda z, x: 0.5 * z + x)
    assert pickle.loads(pickle.dumps(layer)).f is of_a_global


class WithoutF(RevDEQ):
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "f": of_a_global}
