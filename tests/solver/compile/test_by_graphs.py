"""compile=True: f and its product as compiled graphs, with the bits of stored activations."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.solver import composing
from tests.solver.cells import MLP, Normed
from tests.solver.compile.compiling import Model, gradients
from tests.solver.composing import BOUND, BOUNDS, FEATURES
from torch_revdeq import LinearCell, ReconstructionError, RevDEQ, solve
from torch_revdeq.compile import walk

pytestmark = pytest.mark.filterwarnings(
    "ignore:Torchinductor does not support code generation:UserWarning"
)


def solved(f: Callable[..., Any], x: Tensor, **options: Any) -> list[Tensor]:
    """z, and the gradients of what f reads, by compiled graphs."""
    options = {"max_steps": 5, "beta": 0.7, "compile": True, **options}
    solution = solve(f, torch.zeros_like(x), x, **options)
    assert solution.stats.route.startswith("compiled: ")
    wrt = [x, *(f.parameters() if isinstance(f, nn.Module) else ())]
    found = [solution.z, *torch.autograd.grad(solution.z.square().sum(), wrt)]
    assert solution.stats.reconstruction_error == 0.0
    return found


def near(got: Sequence[Tensor], want: Sequence[Tensor], bound: float = 2.0**-16) -> None:
    """To within the roundings of a few dozen operations in float32, of the whole tensor's norm."""
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b.double()).norm() <= bound * b.double().norm()


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


# ---- the same bits -------------------------------------------------------------------------------


def test_the_gradient_has_the_bits_of_stored_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    f, x = MLP(), leaf(6, 16)
    run, stored = walk.CompiledF.run, []

    def note(self: Any, inputs: Any, leaves: Any) -> Any:
        stored.append([t.clone() for t in run(self, inputs, leaves)])
        return stored[-1]

    want = solved(f, x)
    with monkeypatch.context() as patch:
        patch.setattr(walk.CompiledF, "run", note)
        solution = solve(f, torch.zeros_like(x), x, max_steps=5, beta=0.7, compile=True)
        patch.setattr(walk.CompiledF, "run", lambda *_: stored.pop())
        loss = solution.z.square().sum()
        got = [solution.z, *torch.autograd.grad(loss, [x, *f.parameters()])]
    assert not stored and all(map(torch.equal, got, want))
    near(got, solved_eagerly(f, x))


def solved_eagerly(f: Callable[..., Any], x: Tensor, **options: Any) -> list[Tensor]:
    options = {"max_steps": 5, "beta": 0.7, **options}
    solution = solve(f, torch.zeros_like(x), x, **options)
    assert solution.stats.route == "solver"
    wrt = [x, *(f.parameters() if isinstance(f, nn.Module) else ())]
    return [solution.z, *torch.autograd.grad(solution.z.square().sum(), wrt)]


def test_without_gradients_z_has_the_same_bits() -> None:
    f, x = MLP(), leaf(6, 16)
    want = solved(f, x)[0]
    with torch.no_grad():
        solution = solve(f, torch.zeros_like(x), x, max_steps=5, beta=0.7, compile=True)
    assert solution.stats.route.startswith("compiled") and torch.equal(solution.z, want)


def test_another_f_on_the_way_back_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    f, x = MLP(), leaf(6, 16)
    solution = solve(f, torch.zeros_like(x), x, compile=True)
    run = walk.CompiledF.run

    def off(self: Any, inputs: Any, leaves: Any) -> Any:
        ends = list(run(self, inputs, leaves))
        return [ends[0] * (1 + 2.0**-12), *ends[1:]]

    monkeypatch.setattr(walk.CompiledF, "run", off)
    with pytest.raises(ReconstructionError):
        solution.z.sum().backward()


@pytest.mark.parametrize(
    ("planted", "says"),
    [
        (lambda back, ends: [e if e is None or not back else 1.01 * e for e in ends], "gradient"),
        (
            lambda back, ends: [e if back else e + torch.rand(()) for e in ends],
            "not bitwise repeatable",
        ),
    ],
    ids=["gradient", "bits"],
)
def test_graphs_that_compute_something_else_are_not_used(
    monkeypatch: pytest.MonkeyPatch, planted: Callable[..., Any], says: str
) -> None:
    from torch_revdeq.compile import graphs

    made = graphs._compiled

    def spoiled(graph: Any, visible: Any, *, back: bool) -> Any:
        run = made(graph, visible, back=back)
        return lambda given: planted(back, run(given))

    monkeypatch.setattr(graphs, "_compiled", spoiled)
    f, x = MLP(), leaf(6, 16)
    with pytest.raises(ValueError, match=f"compile: expected .*{says}.*; pass compile='auto'"):
        solve(f, torch.zeros_like(x), x, compile=True)


# ---- what f reads --------------------------------------------------------------------------------


class Scaled(MLP):
    """An MLP with a number and a buffer beside its parameters."""

    scale = 1.0
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(16))

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        return self.scale * super().forward(z, x) + self.shift


def test_what_changes_between_solves_is_seen() -> None:
    f, x = Scaled(), leaf(6, 16)
    near(solved(f, x), solved_eagerly(f, x))
    f.scale = 0.5  # its guard fails, and f is traced again
    near(solved(f, x), solved_eagerly(f, x))
    with torch.no_grad():
        f.a.weight.mul_(1.5)
        f.shift.add_(0.1)
    near(solved(f, x), solved_eagerly(f, x))
    y = leaf(3, 16)
    near(solved(f, y), solved_eagerly(f, y))


def test_what_changes_before_the_way_back_raises() -> None:
    f, x = Scaled(), leaf(6, 16)
    for tensor in (f.a.weight, f.shift):
        z = solve(f, torch.zeros_like(x), x, compile=True).z
        with torch.no_grad():
            tensor.mul_(1.5)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.sum().backward()


def test_one_tensor_in_several_places_gets_its_gradient_once() -> None:
    w, x = leaf(16), leaf(6, 16)
    found = []
    for choice in ({"adjoint": "backprop"}, {"compile": True}):
        twice = 2 * w

        def f(z: Tensor, a: Tensor, b: Tensor, c: Tensor, twice: Tensor = twice) -> Tensor:
            return torch.tanh(0.3 * z * twice * w + a - 2 * b * c)

        options: dict[str, Any] = choice
        one = solve(f, x, x, x, twice, **options).z  # the start, two arguments, and a closure
        two = solve(f, torch.zeros_like(x), x, x, w, **options).z
        loss = one.square().sum() + two.square().sum()
        found.append([one, two, *torch.autograd.grad(loss, [w, x])])
    near(found[1], found[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "last",
    [
        lambda new, x: F.linear(new, torch.eye(16), torch.ones(16)),
        lambda new, x: new.transpose(0, 1).contiguous().transpose(0, 1),
        lambda new, x: x.view(2, 3, 16),
    ],
    ids=["a product", "a transpose", "a view of what it was given"],
)
def test_an_f_that_returns_a_view(last: Callable[..., Tensor]) -> None:
    f, x = MLP(), leaf(2, 3, 16)

    def viewed(z: Tensor, x: Tensor) -> Tensor:
        return last(f(z, x), x)

    near(solved(viewed, x), solved_eagerly(viewed, x))


def test_what_is_known_of_f_goes_with_it() -> None:
    from torch_revdeq.compile import captured

    f, x = MLP(), leaf(6, 16)
    solved(f, x)
    known, count = weakref.ref(f), len(captured._known)
    del f
    gc.collect()
    assert known() is None and len(captured._known) == count - 1


@pytest.mark.slow
@pytest.mark.parametrize("row", FEATURES)
def test_features_by_graphs_or_as_before(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if row in REFUSED_ANYHOW:
        pytest.skip("the reversible adjoint refuses it")
    routes: list[str] = []

    def either(*args: Any, **options: Any) -> Any:
        solution = solve(*args, **options, compile="auto")
        routes.append(solution.stats.route)
        return solution

    with monkeypatch.context() as patch:
        patch.setattr(composing, "solve", either)
        torch.manual_seed(0)
        got = FEATURES[row]("reversible")
    torch.manual_seed(0)
    want = FEATURES[row]("backprop" if row != "store_last" else "reversible")
    assert routes and routes[0].startswith("solver: " if row in BY_THE_SOLVER else "compiled: ")
    # Sums that round otherwise in f, where eager mode has the same bits.
    near(got, want, BOUNDS.get(row, BOUND) or 2.0**-16)


REFUSED_ANYHOW = {
    "an input injection that f computes once",
    "spectral_norm in training",
    "f closes over a computed tensor",
    "a loss left on f, not returned",
}
BY_THE_SOLVER = {
    "store_last",
    "has_aux",
    "pass_step",
    "BatchNorm in training",
    "dropout",
    "energy model (autograd.grad in f)",
    "sparse argument",
}

# ---- what graphs do not take ---------------------------------------------------------------------


class Counting(MLP):
    """An MLP that counts its calls, and keeps what it returned."""

    calls = 0
    last: Any = None

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        self.calls += 1
        self.last = super().forward(z, x).detach()
        return self.last if self.calls < 0 else super().forward(z, x)


def _branching(z: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(z + x) if z.sum() > -1e9 else x


def _drawing(z: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(z + x) * (1 + 1e-3 * random.random())


@pytest.mark.parametrize(
    ("f", "options", "says"),
    [
        (Counting(), {}, "f changes what it holds"),
        (Normed(), {}, "f writes to a tensor that it reads, such as a buffer"),
        (MLP(p=0.5), {}, "f draws random numbers"),
        (_branching, {}, "torch.compile cannot trace f"),
        (_drawing, {}, "(f draws random numbers|torch.compile cannot trace f)"),
        (MLP(), {"adjoint": "checkpoint"}, "they support only adjoint='reversible'"),
        (MLP(), {"store_last": 2}, "they support only store_last=0"),
        (MLP(), {"accumulate": "autograd"}, "they support only accumulate='float32'"),
    ],
    ids=["attribute", "buffer", "dropout", "branch", "random", "a", "s", "g"],
)
def test_what_graphs_do_not_take(f: Any, options: dict[str, Any], says: str) -> None:
    x = leaf(6, 16)
    with pytest.raises(ValueError, match=f"compile: expected .*{says}.*; pass compile='auto'"):
        solve(f, torch.zeros_like(x), x, compile=True, **options)
    assert getattr(f, "calls", 0) == 0 and getattr(f, "last", None) is None  # nothing has happened
    if f is _drawing:  # the solver refuses it, too, in its own way
        return
    torch.manual_seed(0)
    solution = solve(f, torch.zeros_like(x), x, compile="auto", **options)
    assert solution.stats.route.startswith(f"solver: {says}")
    torch.manual_seed(0)
    assert torch.equal(solution.z, solve(f, torch.zeros_like(x), x, **options).z)


def test_dropout_is_compiled_where_it_does_nothing() -> None:
    f, x = MLP(p=0.5), leaf(6, 16)
    assert not solve(f, torch.zeros_like(x), x, compile="auto").stats.route.startswith("compiled")
    f.eval()
    assert solve(f, torch.zeros_like(x), x, compile=True).stats.route.startswith("compiled: ")


def test_where_torch_compile_does_nothing_f_stays_as_it_is() -> None:
    f, x = MLP(), leaf(6, 16)
    with torch.compiler.set_stance("force_eager"):
        solution = solve(f, torch.zeros_like(x), x, compile="auto")
    assert solution.stats.route == "solver: torch.compile is switched off"
    with torch.inference_mode():
        solution = solve(f, torch.zeros(6, 16), torch.randn(6, 16), compile="auto")
    assert "inference mode" in solution.stats.route


# ---- layers and models ---------------------------------------------------------------------------


def test_a_layer_that_is_compiled() -> None:
    x = torch.randn(6, 32)
    for f in (LinearCell(32, 32), MLP(32)):
        by_solver = {"implementation": "solver"} if isinstance(f, LinearCell) else {}
        layer = RevDEQ(f, compile=True, max_steps=4, **by_solver)
        layer(x).sum().backward()
        assert layer.stats is not None and layer.stats.route.startswith("compiled: ")


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"state": torch.float64}, {"tol": 1e-3, "max_steps": 40}])
def test_a_compiled_model_compiles_the_solve(options: dict[str, Any]) -> None:
    model, x = Model(**options), torch.randn(6, 16)
    want = [g for g in gradients(model, model, x) if g is not None]
    compiled = torch.compile(model, fullgraph=True)
    got = [g for g in gradients(model, compiled, x) if g is not None]
    assert model.equilibrium.stats.route.startswith("compiled: ")
    near(got, want)
    with torch.no_grad():
        near([compiled(x)], [model(x)])


@pytest.mark.slow
def test_a_compiled_model_with_dropout_says_why_not() -> None:
    model, x = Model(MLP(p=0.5)), torch.randn(6, 16)
    torch.compile(model, fullgraph=True)(x).sum().backward()
    assert model.equilibrium.stats.route.startswith("solver: f draws random numbers")


@pytest.mark.slow
def test_any_depth_comes_back() -> None:
    f, x = MLP(), leaf(6, 16)
    near(solved(f, x, max_steps=200), solved_eagerly(f, x, max_steps=200))


@pytest.mark.slow
@pytest.mark.parametrize("choice", [False, True])
def test_a_leaf_that_becomes_another(choice: bool) -> None:
    """Position and velocity: the product of one leaf is the seed of the other, which is written."""
    u, v, x = leaf(6, 16), leaf(6, 16), leaf(6, 16)

    def f(z: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        return z[1].view(6, 16), torch.tanh(0.5 * z[0] + x)

    found = []
    rows: list[dict[str, Any]] = [{"adjoint": "backprop"}, {"compile": choice}]
    for options in rows:
        z = solve(f, (u, v), x, beta=0.7, **options).z
        loss = z[0].square().sum() + z[1].square().sum()
        found.append([*z, *torch.autograd.grad(loss, [u, v, x])])
    near(found[1], found[0])
