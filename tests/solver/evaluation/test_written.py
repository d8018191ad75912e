"""What f writes while it is evaluated: counted once, whatever it is and wherever it stands."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.solver.cells import MLP, Normed
from tests.solver.evaluation.writing import WRITTEN, Counting, Statistics, Target
from tests.solver.solving import found_by
from torch_revdeq import ReconstructionError, solve

F32 = torch.float32
REPLAYED = ["reversible", "hooks", "checkpoint"]
FLOAT: dict[str, dict[str, Any]] = {"functional": {"state": F32}}


def start() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(6, 16)


# ---- counted once ------------------------------------------------------------------------------

COUNTED = [
    (name, adjoint, state)
    for name, (_, adjoints) in WRITTEN.items()
    for adjoint in adjoints
    for state in ("exact", F32)
    if (adjoint, state) != ("functional", "exact")
]


@pytest.mark.parametrize(("name", "adjoint", "state"), COUNTED)
def test_what_f_writes_counts_once(name: str, adjoint: str, state: Any) -> None:
    """In a training step; and with an exact state the gradient is that of backprop, too."""

    def trained(adjoint: Any) -> Any:
        written = WRITTEN[name][0]()
        x = start().requires_grad_()
        given = (torch.zeros_like(x), x, *written.args)
        z = solve(written.f, *given, adjoint=adjoint, state=state, max_steps=4).z
        z.square().sum().backward()
        assert written.counted() == 8
        return [written.read(), x.grad if state == "exact" else None]

    got, want = found_by(trained, adjoint, "backprop")
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b) if isinstance(b, Tensor) else a == b


@pytest.mark.parametrize("make", [Normed, lambda: Statistics("no_grad")])
def test_inside_of_a_transform_nothing_may_be_written(make: Callable[[], nn.Module]) -> None:
    x, f = start(), make()
    options: dict[str, Any] = {"adjoint": "functional", "state": F32}
    # torch says so by itself of what it sees.
    refused = "f: expected not to write its buffers|would mutate a captured Tensor"
    with pytest.raises(RuntimeError, match=refused):
        torch.func.grad(lambda x: solve(f, torch.zeros(6, 16), x, **options).z.sum())(x)


def test_attributes_are_put_back_where_the_way_back_fails() -> None:
    f, x = Counting(), start().requires_grad_()
    z = solve(f, x, x, max_steps=2).z

    def fail(*_: Any) -> None:
        raise KeyError("stop")

    f.register_forward_hook(fail)
    with pytest.raises(KeyError):
        z.sum().backward()
    assert f.calls == 4 and len(f.log) == 4


# ---- arguments ---------------------------------------------------------------------------------


def counted(z: Tensor, x: Tensor, count: Tensor, *, step: int) -> Tensor:
    count.detach().add_(1 + step)
    return torch.tanh(0.5 * z + x)


def caching(z: Tensor, x: Tensor, cache: Tensor, *, step: int) -> Tensor:
    with torch.no_grad():
        cache.copy_(z.sum())
    return torch.tanh(0.5 * z + cache + x)


def late(z: Tensor, x: Tensor, count: Tensor, *, step: int) -> Tensor:
    if step == 2:
        count.add_(1)
    return torch.tanh(0.5 * z + x)


@pytest.mark.parametrize("adjoint", ["reversible", "functional", "hooks", "checkpoint"])
@pytest.mark.parametrize("f", [counted, caching, late])
def test_an_argument_that_f_writes(f: Any, adjoint: Any) -> None:
    """It is put back; with saved-tensor hooks, whose checks go by versions, the solve raises."""
    options: dict[str, Any] = {"max_steps": 3, "pass_step": True, **FLOAT.get(adjoint, {})}

    def left(adjoint: Any) -> Tensor:
        count, x = torch.zeros(()), start().requires_grad_()
        solve(f, torch.zeros_like(x), x, count, adjoint=adjoint, **options).z.sum().backward()
        return count

    if adjoint in ("hooks", "checkpoint"):
        with pytest.raises(RuntimeError, match="an argument changed in place"):
            left(adjoint)
    else:
        assert torch.equal(left(adjoint), left("backprop"))


def test_an_argument_that_f_writes_and_reads_is_refused() -> None:
    def f(z: Tensor, x: Tensor, count: Tensor) -> Tensor:
        count.add_(1)
        return torch.tanh(0.5 * z + count * x)

    x = start().requires_grad_()
    with pytest.raises(RuntimeError, match="expected not to read the buffers and tensors"):
        solve(f, x, x, torch.zeros(()))
    with torch.no_grad():
        solve(f, x, x, torch.zeros(()), adjoint="hooks")


# ---- what is read, too ---------------------------------------------------------------------------


class Reader(nn.Module):
    """Reads what it writes."""

    scale: Tensor

    def __init__(self, where: str) -> None:
        super().__init__()
        self.linear, self.where = nn.Linear(16, 16), where
        self.register_buffer("scale", torch.ones(()))
        self.plain = torch.ones(1)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        held: dict[str, Any] = {"a buffer": self.scale, "a tensor": self.plain}
        scale = held[self.where]
        with torch.no_grad():
            scale.mul_(0.9)
        return torch.tanh(scale.clone() * self.linear(z) + x)


@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "functional"])
@pytest.mark.parametrize("where", ["a buffer", "a tensor"])
def test_what_is_read_and_written_is_refused_in_the_forward_pass(where: str, adjoint: str) -> None:
    x, options = start(), FLOAT.get(adjoint, {})
    for check in (True, False):
        with pytest.raises(RuntimeError, match=r"^f: expected not to (read the|write its) buf"):
            solve(Reader(where), x, x, adjoint=adjoint, check=check, **options)  # type: ignore[arg-type]
    solve(Reader(where), x, x, adjoint="backprop").z.sum().backward()


def test_a_frozen_parameter_that_f_writes_and_reads_is_refused() -> None:
    with pytest.raises(RuntimeError, match="f: expected not to read the buffers and tensors"):
        solve(Target(read=True), start(), start(), max_steps=4)


class LateReader(Reader):
    """Reads its counter from the fifth evaluation on."""

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        self.scale += 1.0
        factor = torch.where(self.scale > 5.0, self.scale, 1.0)
        return torch.tanh(0.1 * factor * self.linear(z) + x)


@pytest.mark.parametrize("adjoint", ["reversible", "hooks"])
def test_what_is_read_later_is_found_after_the_way_back(adjoint: str) -> None:
    f, x = LateReader(""), start().requires_grad_()
    z = solve(f, x, x, adjoint=adjoint).z  # type: ignore[arg-type]
    with pytest.raises(ReconstructionError, match=r"reads what it writes.*'scale' in LateReader"):
        z.sum().backward()
    assert f.scale == 1 + 16


def test_the_question_whether_f_reads_leaves_no_trace() -> None:
    f, x = Statistics("no_grad"), start()
    calls = [0]
    f.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    solve(f, x, x, max_steps=3)
    assert f.count == 6 and calls == [6]


def test_a_graph_outside_may_have_saved_a_buffer() -> None:
    """Buffers are put back with their versions."""
    f, x = Statistics("batch_norm"), start()
    weight = torch.ones(16, requires_grad=True)
    extra, table = nn.Module(), torch.ones(16)
    extra.register_buffer("table", table)
    f.add_module("extra", extra)
    outside = weight * table  # saves the buffer
    z = solve(f, x, x, max_steps=2).z
    z.sum().backward()
    outside.sum().backward()
    assert torch.equal(weight.grad, torch.ones(16))  # type: ignore[arg-type]


# ---- caches ------------------------------------------------------------------------------------


class Cache:
    """As those of language models: a list of layers, filled when they are first met."""

    def __init__(self) -> None:
        self.layers: list[types.SimpleNamespace] = []

    def update(self, k: Tensor) -> Tensor:
        if not self.layers:
            self.layers.append(types.SimpleNamespace(keys=k))
        else:
            self.layers[0].keys = torch.cat((self.layers[0].keys, k), 1)
        return self.layers[0].keys


class Attention(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear, self.kind = nn.Linear(8, 8), kind
        first = torch.zeros(2, 5, 8)
        self.cache: Any = {"k": first} if kind == "dict" else [first] if kind == "list" else None
        if kind == "object":
            self.cache = Cache()
        if kind == "tuple":
            self.cache = {"kv": (first, first)}

    def forward(self, z: Tensor) -> Tensor:
        k = self.linear(z)
        if self.kind == "dict":
            keys = self.cache["k"] = torch.cat((self.cache["k"], k), 1)
        elif self.kind == "list":
            keys = self.cache[0] = torch.cat((self.cache[0], k), 1)
        elif self.kind == "object":
            keys = self.cache.update(k)
        elif self.kind == "tuple":
            keys = torch.cat((self.cache["kv"][0], k), 1)
            self.cache["kv"] = (keys, keys)
        else:
            keys = self.cache = k if self.cache is None else torch.cat((self.cache, k), 1)
        return torch.tanh(k + keys.mean(1, keepdim=True))


KINDS = ["dict", "list", "object", "tuple", "attribute"]


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_that_grows_is_refused_without_gradients(kind: str, steps: int) -> None:
    f, z = Attention(kind), torch.randn(2, 1, 8)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"^f: expected to keep no tensor that"):
        solve(f, z, max_steps=steps)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"grew from \(2, \d, 8\) to"):
        solve(lambda z, net: net(z), z, Attention(kind), max_steps=steps)


IN_TRAINING = {
    "reversible": r"^f: expected to recompute what it reads in every evaluation, got a tensor",
    "hooks": r"^f: expected to keep no tensor that grows with each evaluation, got 'k' in a dict",
    "checkpoint": r"^f: expected not to read the attributes, containers .* a change of 'k'",
}


@pytest.mark.parametrize("adjoint", REPLAYED)
def test_a_cache_that_grows_is_refused_in_training(adjoint: str) -> None:
    with pytest.raises(RuntimeError, match=IN_TRAINING[adjoint]):
        solve(Attention("dict"), torch.randn(2, 1, 8), adjoint=adjoint)  # type: ignore[arg-type]


def test_a_log_that_is_a_tensor_is_told_what_to_be_instead() -> None:
    log: dict[str, Tensor] = {}

    def f(z: Tensor, x: Tensor) -> Tensor:
        norm = z.detach().norm()[None]
        log["norms"] = torch.cat((log["norms"], norm)) if log else norm
        return torch.tanh(0.5 * z + x)

    with pytest.raises(RuntimeError, match=r"with each evaluation, got 'norms' .*list of floats$"):
        solve(f, start(), start())


def test_backprop_takes_a_cache_that_grows() -> None:
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            f = Attention("dict")
            solve(f, torch.randn(2, 1, 8), adjoint="backprop", max_steps=2)
            assert f.cache["k"].shape[1] == 5 + 4


def test_what_changes_its_shape_and_does_not_grow() -> None:
    """An attribute of the last call with another batch, a selection that depends on the data."""

    class Selecting(nn.Module):
        chosen: Any = None
        last: Any = None

        def forward(self, z: Tensor) -> Tensor:
            self.chosen, self.last = z[z > 0], z.detach()
            return torch.tanh(z + 0.1)

    f = Selecting()
    torch.manual_seed(0)
    for batch in (4, 9, 3):
        with torch.no_grad():
            solve(f, torch.randn(batch, 50), max_steps=4)
        assert f.last.shape == (batch, 50)


def test_the_slots_of_computed_parameters() -> None:
    """What an adjoint needs to make them inputs of its own."""
    from torch_revdeq.evaluation.flat_function import FlatFunction, flatten
    from torch_revdeq.evaluation.replay import Evaluation

    linear, z = nn.Linear(4, 4), torch.zeros(2, 4)
    weight = (2.0 * linear.weight).detach().requires_grad_() * 1.0
    found: list[Any] = []

    def call(*_: Any) -> None:
        leaves, structure = flatten("z0", z)
        evaluation = Evaluation(FlatFunction(linear, leaves, structure), z.device, "auto")
        found.extend(evaluation.computed)
        other = torch.ones(4, 4)
        with evaluation.with_computed([other]):
            assert linear.weight is other
        assert linear.weight is weight

    linear.register_forward_pre_hook(call)
    functional_call(linear, {"weight": weight}, (z,))
    assert [(m, name) for m, name, _ in found] == [(linear, "weight")]
    assert found[0][2] is weight


# ---- per-sample gradients ----------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", [*REPLAYED, "functional"])
def test_what_opacus_prepared_is_refused(adjoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It marks each parameter, and counts evaluations by hooks."""
    f, x = MLP(), start()
    solve(f, x, x).z.sum().backward()
    for p in f.parameters():
        p.grad_sample = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "opacus", types.ModuleType("opacus"))
    with pytest.raises(RuntimeError, match=r"Opacus.*adjoint='backprop'"):
        solve(f, x, x, adjoint=adjoint, **FLOAT.get(adjoint, {}))  # type: ignore[arg-type]
    solve(f, x, x, adjoint="backprop").z.sum().backward()
    with torch.no_grad():
        solve(f, x, x)
