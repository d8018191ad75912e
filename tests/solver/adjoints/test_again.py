"""The way back evaluates f again: where it is another f and the states do not tell, it raises."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_revdeq import ReconstructionError, RevDEQ, fixed_point, solve

F64 = torch.float64
ADJOINTS = ("reversible", "hooks", "checkpoint", "functional")


def options_of(adjoint: str) -> dict[str, Any]:
    return {"adjoint": adjoint, "max_steps": 4, "state": F64 if adjoint == "functional" else "auto"}


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.of_z, self.of_x = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, z: Tensor, x: Tensor) -> Any:
        return torch.tanh(0.3 * self.of_z(z) + self.of_x(x))


# ---- aux -----------------------------------------------------------------------------------------


class OfBefore(Cell):
    """A penalty on the change since the evaluation before."""

    before: Any = 0.0

    def forward(self, z: Tensor, x: Tensor) -> Any:
        h = super().forward(z, x)
        aux = (h - self.before).square().mean()
        self.before = h.detach()
        return h, aux


class OfCounter(Cell):
    """A weight that falls with every evaluation."""

    calls = 0

    def forward(self, z: Tensor, x: Tensor) -> Any:
        self.calls += 1
        h = super().forward(z, x)
        return h, 0.5**self.calls * h.square().mean()


class OfGenerator(Cell):
    """Random numbers that nobody replays."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)

    def forward(self, z: Tensor, x: Tensor) -> Any:
        h = super().forward(z, x)
        return h, h.square().mean() * float(self.generator.random())


@pytest.mark.parametrize("make", [OfBefore, OfCounter, OfGenerator])
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_an_aux_that_is_another_on_the_way_back(adjoint: str, make: Callable[[], Cell]) -> None:
    x = torch.randn(4, 8)
    with pytest.raises(RuntimeError, match=r"^f: expected (to return the same|not to read the)"):
        solve(make(), torch.zeros(4, 8), x, has_aux=True, **options_of(adjoint)).aux.backward()


def test_an_aux_that_is_the_same_and_holds_nan() -> None:
    def f(z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(w * z), torch.stack([w.sum(), torch.tensor(float("nan"))])

    w = torch.ones(8, requires_grad=True)
    aux = solve(f, torch.zeros(8), w, has_aux=True, max_steps=3).aux
    aux[0].backward()
    assert w.grad is not None and torch.equal(w.grad, torch.full((8,), 6.0))


# ---- the same values, and another gradient -------------------------------------------------------


class Stopped(Cell):
    """A part of its gradient is stopped, while a flag says so."""

    stop = True

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        h = super().forward(z, x)
        return 0.5 * h + 0.5 * (h.detach() if self.stop else h)


class Task(Cell):
    """Adds a row of a table that starts as zeros: which one is a number, in no tensor."""

    task = 0

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(9, 8))

    def read(self) -> Tensor:
        return self.table[self.task]

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return super().forward(z, x) + self.read()


class Sliced(Task):
    def read(self) -> Tensor:
        return self.table[self.task : self.task + 2].sum(0)


class Summed(Task):
    """A sum over another dimension of an operand that is square and constant."""

    def read(self) -> Tensor:
        return torch.outer(torch.ones(8), self.table[0]).sum(self.task)


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize(
    ("make", "task", "other"),
    # Of 7 and the last index, torch keeps numbers with the same hash.
    [(Task, 1, 2), (Task, 7, -1), (Sliced, 1, 2), (Summed, 0, 1)],
)
def test_another_part_of_a_tensor_with_the_same_values(
    make: Callable[[], Task], task: int, other: int, adjoint: str
) -> None:
    f, x = make(), torch.randn(8, 8)
    f.task = task
    z = solve(f, torch.zeros(8, 8), x, **options_of(adjoint)).z
    f.task = other
    with pytest.raises(RuntimeError, match="f: expected to run the same operations"):
        z.square().sum().backward()
    f.task = task
    solve(f, torch.zeros(8, 8), x, **options_of(adjoint)).z.square().sum().backward()


class Scaled(Cell):
    factor = 0.6

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.factor * super().forward(z, x)


@pytest.mark.parametrize("options", [{}, {"backward_steps": 2}])
@pytest.mark.parametrize("later", [0.6, 0.3])
def test_a_second_derivative_of_another_f(later: float, options: dict[str, Any]) -> None:
    """It stores the graphs of a solve that is run again."""
    f, x = Scaled(), torch.randn(4, 8, requires_grad=True)
    z = solve(f, torch.zeros(4, 8), x, max_steps=4, state=F64, **options).z
    f.factor = later
    if later == 0.6:
        torch.autograd.grad(z.sum(), x, create_graph=True)
        return
    with pytest.raises(RuntimeError, match="f: expected to return the same values"):
        torch.autograd.grad(z.sum(), x, create_graph=True)


class Sided(nn.Module):
    """Two products of the same shapes, of which one takes no gradient to the state."""

    stop = False

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Linear(8, 8, bias=False) for _ in range(2))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        p, q = (z.detach(), z) if self.stop else (z, z.detach())
        return 0.3 * torch.tanh(self.a(p) + self.b(q)) + x


class Paired(Cell):
    """Two equal outputs of one operation, unlike in their gradients, exchanged by a flag."""

    exchanged = False

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        h = super().forward(z, x)
        p, q = torch.stack((h, 0.5 * h + 0.5 * h.detach())).unbind()
        if self.exchanged:
            p, q = q, p
        return 0.25 * p + 0.5 * q


class PairReturned(Cell):
    """The same, of which each is a leaf of the state."""

    exchanged = False

    def forward(self, z: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        h = super().forward(z["a"] + z["b"], x)
        p, q = torch.stack((0.3 * h, 0.3 * h.detach())).unbind()
        if self.exchanged:
            p, q = q, p
        return {"a": p, "b": q}


@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("kind", [Paired, PairReturned])
def test_outputs_of_one_operation_that_are_exchanged(
    kind: type[Cell], adjoint: str, exchanged: bool
) -> None:
    f, x = kind(), torch.randn(4, 8)
    one = kind is Paired
    z0: Any = torch.zeros(4, 8) if one else {"a": torch.zeros(4, 8), "b": torch.zeros(4, 8)}
    z: Any = solve(f, z0, x, **options_of(adjoint)).z
    loss = (z if one else z["a"]).square().sum()
    f.exchanged = exchanged  # type: ignore[assignment]
    if not exchanged:
        loss.backward()
        return
    with pytest.raises(RuntimeError, match="f: expected to run the same operations"):
        loss.backward()


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("kind", [Stopped, Sided])
def test_a_flag_that_changed_before_backward(kind: type[nn.Module], adjoint: str) -> None:
    """Saved tensors could reach other nodes than those that saved them."""
    f, x = kind(), torch.randn(8, 8)
    f.stop = True  # type: ignore[assignment]
    z = solve(f, torch.zeros(8, 8), x, **options_of(adjoint)).z
    f.stop = False  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="f: expected to run the same operations"):
        z.square().sum().backward()


@pytest.mark.parametrize("adjoint", ["reversible", "functional"])
@pytest.mark.parametrize("change", ["added", "removed"])
def test_hooks_of_modules_between(change: str, adjoint: str) -> None:
    f, x = Cell(), torch.randn(4, 8)
    double = lambda module, before, grads: tuple(2 * g for g in before)  # noqa: E731
    handle = f.of_z.register_full_backward_hook(double) if change == "removed" else None
    z = solve(f, torch.zeros(4, 8), x, **options_of(adjoint)).z
    if handle is None:
        f.of_z.register_full_backward_hook(double)
    else:
        handle.remove()
    with pytest.raises(RuntimeError, match="f: expected to run the same operations"):
        z.square().sum().backward()


@pytest.mark.parametrize("store_last", [0, 1, 4])
def test_a_leaf_that_was_replaced(store_last: int) -> None:
    held = {"w": torch.ones(8, requires_grad=True)}
    f = lambda z, x: torch.tanh(0.5 * z * held["w"] + x)  # noqa: E731
    z = solve(f, torch.zeros(4, 8), torch.ones(4, 8), max_steps=4, store_last=store_last).z
    held["w"] = held["w"].detach().clone().requires_grad_()
    with pytest.raises(RuntimeError, match="f: expected to read the same tensors in"):
        z.sum().backward()


def test_a_parameter_that_is_read_instead_of_another_is_named() -> None:
    f = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    f["b"].load_state_dict(f["a"].state_dict())
    used = ["a"]

    def g(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.3 * f[used[0]](z) + x)

    z = solve(g, torch.zeros(4, 8), torch.randn(4, 8)).z
    used[0] = "b"
    with pytest.raises(RuntimeError, match=r"read the same .*, got 'b\.\w+' in ModuleDict in the"):
        z.sum().backward()


def test_a_frozen_parameter_that_was_changed_is_named() -> None:
    f, x = Cell(), torch.randn(4, 8)
    f.of_z.weight.requires_grad_(False)
    z = solve(f, torch.zeros(4, 8), x).z
    with torch.no_grad():
        f.of_z.weight.mul_(1.1)
    with pytest.raises(ReconstructionError, match=r"written since: 'of_z\.weight' in Cell"):
        z.sum().backward()


def test_a_leaf_of_one_step_that_was_replaced() -> None:
    held = {"w": torch.ones(8, requires_grad=True)}

    def f(z: Tensor, x: Tensor, step: int) -> Tensor:
        return torch.tanh(0.5 * z + x + (held["w"] if step == 0 else 1.0))

    z = solve(f, torch.zeros(4, 8), torch.ones(4, 8), max_steps=4, pass_step=True).z
    held["w"] = held["w"].detach().clone().requires_grad_()
    with pytest.raises(RuntimeError, match="f: expected to read the same tensors in"):
        z.sum().backward()


# ---- random numbers, and what is not seen by the graph -------------------------------------------


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_random_numbers_from_a_later_evaluation_on(adjoint: str) -> None:
    def f(z: Tensor, x: Tensor, step: int) -> Tensor:
        h = torch.tanh(0.3 * z + x)
        return nn.functional.dropout(h, 0.3) if step else h

    x = torch.randn(4, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="f: expected to draw random numbers in its"):
        solve(f, torch.zeros(4, 8), x, pass_step=True, **options_of(adjoint))


def test_checkpoint_compares_what_f_returns() -> None:
    generator = torch.Generator().manual_seed(0)

    def f(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.3 * z + x) * torch.rand(8, generator=generator)

    x = torch.randn(4, 8, requires_grad=True)
    z = solve(f, torch.zeros(4, 8), x, adjoint="checkpoint").z
    with pytest.raises(RuntimeError, match="f: expected to return the same values"):
        z.sum().backward()
    solve(f, torch.zeros(4, 8), x, adjoint="checkpoint", check=False).z.sum().backward()


# ---- what else f may do --------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_what_hooks_note_of_gradients_stays(adjoint: str) -> None:
    f = Cell()
    f.seen = []  # type: ignore[assignment]

    def call(z: Tensor, x: Tensor) -> Tensor:
        h = f(z, x)
        f.size = h.detach().norm()
        h.register_hook(lambda g: f.seen.append(float(g.norm())))  # type: ignore[operator]
        return h

    x = torch.randn(4, 8)
    if adjoint == "functional":
        pytest.skip("it refuses a function that closes over parameters")
    solve(call, torch.zeros(4, 8), x, **options_of(adjoint)).z.square().sum().backward()
    assert len(f.seen) == 8


def test_containers_among_the_arguments() -> None:
    def f(z: Tensor, notes: dict[str, int]) -> Tensor:
        notes["calls"] = notes.get("calls", 0) + 1
        return 0.5 * z / notes["calls"]

    with pytest.raises(RuntimeError, match="f: expected not to modify the containers"):
        solve(f, torch.ones(3), {"calls": 0})
    with pytest.raises(RuntimeError, match="f: expected not to modify the containers"):
        solve(lambda z, log: (log.append(1), 0.5 * z)[1], torch.ones(3), [])


def test_threads_that_share_a_functional_layer() -> None:
    """The exchange of parameters is undone, whoever else exchanges them."""
    layer = RevDEQ(Cell(), adjoint="functional", state=torch.float32, max_steps=6)
    own, x = {name: id(p) for name, p in layer.named_parameters()}, torch.randn(16, 8)
    parameters = list(layer.parameters())
    errors: list[BaseException] = []

    def serve() -> None:
        try:
            for i in range(10):
                with torch.set_grad_enabled(i % 2 == 0):
                    z = layer(x)
                if z.requires_grad:
                    torch.autograd.grad(z.sum(), parameters)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert own == {name: id(p) for name, p in layer.named_parameters()}


def test_a_limit_in_another_thread() -> None:
    """Autograd numbers its nodes by thread: an argument's have other numbers."""
    f, encoder, found = Cell(), nn.Linear(8, 8), []
    u = torch.tanh(encoder(torch.ones(4, 8)))

    def train() -> None:
        z = fixed_point(f, torch.zeros(4, 8), u).z
        found.extend(torch.autograd.grad(z.sum(), list(encoder.parameters())))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert len(found) == 2 and all(g.abs().sum() > 0 for g in found)


def test_the_error_of_aux_is_a_reconstruction_error() -> None:
    x = torch.randn(4, 8)
    with pytest.raises(ReconstructionError, match="pass_step=True"):
        solve(OfCounter(), torch.zeros(4, 8), x, has_aux=True).aux.backward()
