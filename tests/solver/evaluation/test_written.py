"""What f writes while it is evaluated: counted once, whatever it is and wherever it stands."""

from __future__ import annotations

import sys
import types
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.solver.cells import MLP
from torch_revdeq import ReconstructionError, solve

REPLAYED = ["reversible", "hooks", "checkpoint"]
FLOAT: dict[str, dict[str, Any]] = {"functional": {"state": torch.float32}}


def start() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(6, 16)


def trained(make: Callable[[], tuple[Any, Any]], adjoint: Any, steps: int = 4) -> Any:
    """What f holds after one training step: `make` returns f, and a way to read it."""
    torch.manual_seed(1)
    f, read = make()
    x = start().requires_grad_()
    options = FLOAT.get(adjoint, {})
    z = solve(f, torch.zeros_like(x), x, adjoint=adjoint, max_steps=steps, **options).z
    z.square().sum().backward()
    return read()


# ---- statistics and buffers --------------------------------------------------------------------


class Statistics(nn.Module):
    """Writes what it does not read, in one of several ways."""

    mean: Tensor
    var: Tensor
    count: Tensor
    later: Tensor | None

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(16, 16), how
        self.register_buffer("mean", torch.zeros(16))
        self.register_buffer("var", torch.ones(16))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("later", None)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        out = torch.tanh(self.linear(z) + x)
        mean = out.detach().mean(0)
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
        self.count += 1.0
        return out

    def read(self) -> list[Tensor]:
        return [b.clone() for b in self.buffers()]


class Normed(MLP):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        return self.norm(super().forward(z, x))


HOW = ["batch_norm", "data", "no_grad", "reassigned", "first set"]


@pytest.mark.parametrize("adjoint", REPLAYED)
@pytest.mark.parametrize("how", HOW)
def test_statistics_count_once(how: str, adjoint: str) -> None:
    def make() -> tuple[Any, Any]:
        f = Statistics(how)
        return f, f.read

    got, want = trained(make, adjoint), trained(make, "backprop")
    assert all(map(torch.equal, got, want))
    assert how == "batch_norm" or got[2] == 8


@pytest.mark.parametrize("make", [Normed, lambda: Statistics("no_grad")])
def test_statistics_of_a_function_of_tensors(make: Callable[[], nn.Module]) -> None:
    """Once each in eager mode; inside of torch.func nothing may be written."""
    x, found = start(), []
    for adjoint in ("functional", "backprop"):
        torch.manual_seed(0)
        f = make()
        options: dict[str, Any] = {"adjoint": adjoint, "state": torch.float32, "max_steps": 3}
        solve(f, x, x, **options).z.sum().backward()
        found.append([buffer.clone() for buffer in f.buffers()])
    assert found[0] and all(map(torch.equal, *found))
    options = {"adjoint": "functional", "state": torch.float32}
    f, z0 = make(), torch.zeros_like(x)
    # torch says so by itself of what it sees.
    refused = "f: expected to leave its buffers as they are|would mutate a captured Tensor"
    with pytest.raises(RuntimeError, match=refused):
        torch.func.grad(lambda x: solve(f, z0, x, **options).z.sum())(x)


@pytest.mark.parametrize("adjoint", REPLAYED)
@pytest.mark.parametrize("state", ["exact", torch.float32])
def test_a_float_counter_that_is_not_read_is_kept(adjoint: str, state: Any) -> None:
    f, x = Statistics("no_grad"), start().requires_grad_()
    z = solve(f, x, x, adjoint=adjoint, state=state, max_steps=3).z  # type: ignore[arg-type]
    z.sum().backward()
    assert f.count == 6


@pytest.mark.parametrize("adjoint", REPLAYED)
def test_statistics_of_a_tensor_in_a_closure(adjoint: str) -> None:
    def make() -> tuple[Any, Any]:
        linear = nn.Linear(16, 16)
        mean, var = torch.zeros(16), torch.ones(16)
        space = types.SimpleNamespace(total=torch.zeros(16))

        def f(z: Tensor, x: Tensor) -> Tensor:
            out = nn.functional.batch_norm(linear(z) + x, mean, var, training=True)
            space.total += out.detach().sum(0)
            return torch.tanh(out)

        return f, lambda: [mean, var, space.total]

    assert all(map(torch.equal, trained(make, adjoint), trained(make, "backprop")))


@pytest.mark.parametrize("adjoint", REPLAYED)
def test_statistics_of_a_module_that_is_an_argument(adjoint: str) -> None:
    found = []
    for how in (adjoint, "backprop"):
        torch.manual_seed(1)
        net, x = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16)), start()
        held = {"net": [net]}
        z = solve(lambda z, h: torch.tanh(h["net"][0](z)), x, held, adjoint=how).z  # type: ignore[arg-type]
        z.sum().backward()
        found.append([b.clone() for b in net.buffers()])
    assert all(map(torch.equal, *found))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_statistics_of_a_scripted_module() -> None:
    def make() -> tuple[Any, Any]:
        net: Any = torch.jit.script(nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16)))
        return lambda z, x: torch.tanh(net(z) + x), lambda: list(net.buffers())

    assert all(map(torch.equal, trained(make, "reversible"), trained(make, "backprop")))


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
        with pytest.raises(RuntimeError, match=r"^f: expected to (read none of the|leave its) buf"):
            solve(Reader(where), x, x, adjoint=adjoint, check=check, **options)  # type: ignore[arg-type]
    solve(Reader(where), x, x, adjoint="backprop").z.sum().backward()


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
    with pytest.raises(ReconstructionError, match="reads what it writes: 'scale' in LateReader"):
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


# ---- attributes and containers -----------------------------------------------------------------


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.calls, self.last, self.log, self.recent = 0, None, [], deque(maxlen=3)
        self.seen, self.totals, self.object = set(), {"calls": 0}, types.SimpleNamespace(n=0)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        out = torch.tanh(self.linear(z) + x)
        self.calls += 1
        self.last = out.detach().sum()
        self.log.append(float(out.detach().sum()))
        self.recent.append(self.calls)
        self.seen.add(self.calls)
        self.totals["calls"] += 1
        self.totals[f"call {self.calls}"] = self.calls
        self.object.n += 1
        return out

    def read(self) -> list[Any]:
        plain = [self.calls, float(self.last), self.log, list(self.recent), self.seen]  # type: ignore[arg-type]
        return [*plain, self.totals, self.object.n]


@pytest.mark.parametrize("adjoint", REPLAYED)
def test_attributes_hold_what_the_forward_pass_left(adjoint: str) -> None:
    def make() -> tuple[Any, Any]:
        f = Counting()
        return f, f.read

    got = trained(make, adjoint)
    assert got == trained(make, "backprop")
    assert got[0] == 8 and len(got[2]) == 8


@pytest.mark.parametrize("adjoint", REPLAYED)
def test_the_same_list_keeps_its_old_contents(adjoint: str) -> None:
    f, x = Counting(), start()
    log = f.log
    solve(f, x, x, adjoint=adjoint, max_steps=2).z.sum().backward()  # type: ignore[arg-type]
    assert f.log is log and len(log) == 4


def test_a_variable_of_a_closure() -> None:
    calls, linear, x = 0, nn.Linear(16, 16), start()

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.tanh(linear(z))

    solve(f, x, max_steps=3).z.sum().backward()
    assert calls == 6


CALLS = 0


def counting_globally(z: Tensor) -> Tensor:
    global CALLS
    CALLS += 1
    return torch.tanh(0.5 * z)


def test_a_global_variable() -> None:
    before = CALLS
    solve(counting_globally, start().requires_grad_(), max_steps=3).z.sum().backward()
    assert before + 6 == CALLS


class WithSlots:
    __slots__ = ("calls", "net")

    def __init__(self) -> None:
        self.calls, self.net = 0, nn.Linear(16, 16)

    def __call__(self, z: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(self.net(z))


def test_an_object_with_slots() -> None:
    f = WithSlots()
    solve(f, start(), max_steps=3).z.sum().backward()
    assert f.calls == 6


def test_attributes_are_put_back_where_the_way_back_fails() -> None:
    f, x = Counting(), start().requires_grad_()
    z = solve(f, x, x, max_steps=2).z

    def fail(*_: Any) -> None:
        raise KeyError("stop")

    f.register_forward_hook(fail)
    with pytest.raises(KeyError):
        z.sum().backward()
    assert f.calls == 4 and len(f.log) == 4


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
    "reversible": r"^f: expected to compute what it reads anew in every evaluation, got a tensor",
    "hooks": r"^f: expected to keep no tensor that each evaluation makes larger, got 'k' in a dict",
    "checkpoint": r"^f: expected to read none of the attributes, containers .* a change of 'k'",
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

    with pytest.raises(RuntimeError, match=r"makes larger, got 'norms' .*list of floats$"):
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


# ---- functional_call around a solve ------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self, adjoint: str) -> None:
        super().__init__()
        self.f, self.adjoint = MLP(), adjoint
        self.norm = nn.BatchNorm1d(16)

    def call(self, z: Tensor, x: Tensor) -> Tensor:
        return self.norm(self.f(z, x))

    def forward(self, x: Tensor) -> Tensor:
        return solve(self.call, torch.zeros_like(x), x, adjoint=self.adjoint, max_steps=3).z  # type: ignore[arg-type]


def gradients(adjoint: str, scale: float, *, computed: bool) -> list[Tensor]:
    torch.manual_seed(0)
    layer, x = Layer(adjoint), start()
    own = {k: (scale * v.detach()).clone().requires_grad_() for k, v in layer.named_parameters()}
    given = {k: v - 0.1 * v.square() for k, v in own.items()} if computed else own
    buffers = {k: v.clone() for k, v in layer.named_buffers()}
    before = [b.clone() for b in layer.buffers()]
    functional_call(layer, {**given, **buffers}, (x,)).square().sum().backward()
    assert all(map(torch.equal, layer.buffers(), before))  # the module's own
    assert all(p.grad is None for p in layer.parameters())
    return [*(v.grad for v in own.values()), *buffers.values()]  # type: ignore[list-item]


@pytest.mark.parametrize("adjoint", REPLAYED)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_copies_of_parameters_get_their_gradients(adjoint: str, scale: float) -> None:
    got, want = (gradients(how, scale, computed=False) for how in (adjoint, "backprop"))
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("adjoint", ["hooks", "checkpoint"])
def test_computed_parameters_get_their_gradients(adjoint: str) -> None:
    got, want = (gradients(how, 0.5, computed=True) for how in (adjoint, "backprop"))
    assert all(map(torch.equal, got, want))


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
