"""The edge of f: a gradient enters an evaluation through what f returned, or raises."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torch_revdeq import CaptureError, fixed_point, solve

F64 = torch.float64
CUT = ("reversible", "functional")
"""Adjoints that evaluate f on leaves of their own: a side loss must raise."""
WHOLE = ("hooks", "checkpoint", "backprop")
"""Adjoints in autograd's own graph: a side loss has its gradient."""
REFUSED = "f: expected what it computes to reach the loss through what it returns.*Return it"


def options_of(adjoint: str) -> dict[str, Any]:
    return {"adjoint": adjoint, "max_steps": 4, "state": F64 if adjoint == "functional" else "auto"}


class Cell(nn.Module):
    """A cell of one linear map of the state and one of the input, that contracts."""

    def __init__(self) -> None:
        super().__init__()
        self.of_z, self.of_x = nn.Linear(16, 16), nn.Linear(16, 16)
        nn.init.orthogonal_(self.of_z.weight, 0.4)

    def hidden(self, z: Tensor, x: Tensor) -> Tensor:
        return self.of_z(z) + self.of_x(x)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.hidden(z, x))


class Leaking(Cell):
    """A cell from which tensors leave by another way: `way` takes the hidden state, z and x."""

    def __init__(self, way: Callable[[Leaking, Tensor, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.way = way
        self.kept: Any = None
        self.calls = 0

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        h = self.hidden(z, x)
        self.calls += 1
        self.way(self, h, z, x)
        return torch.tanh(h)


def attribute(f: Leaking, h: Tensor, z: Tensor, x: Tensor) -> None:
    f.kept = h.square().mean()


def in_a_list(f: Leaking, h: Tensor, z: Tensor, x: Tensor) -> None:
    f.kept = [*(f.kept or ()), h.square().mean()]


def of_the_state(f: Leaking, h: Tensor, z: Tensor, x: Tensor) -> None:
    f.kept = z.square().mean()


def of_the_first(f: Leaking, h: Tensor, z: Tensor, x: Tensor) -> None:
    f.kept = h.square().mean() if f.kept is None else f.kept


def of_the_last(f: Leaking, h: Tensor, z: Tensor, x: Tensor) -> None:
    f.kept = h.square().mean() if f.calls == 8 else f.kept


def of_a_later_state(f: Leaking, h: Tensor, z: Tensor, x: Tensor) -> None:
    f.kept = z if f.calls == 5 else f.kept


LEAKS = {
    "of the last evaluation": of_the_last,
    "of a later state": of_a_later_state,
    "attribute": attribute,
    "list": in_a_list,
    "of the state": of_the_state,
    "of the first evaluation": of_the_first,
}


def loop(f: Callable[..., Tensor], z0: Tensor, *args: Any, steps: int = 4) -> Tensor:
    y = z = z0
    for _ in range(steps):
        y = 0.5 * y + 0.5 * f(z, *args)
        z = 0.5 * z + 0.5 * f(y, *args)
    return z


def leaked(
    run: Callable[..., Tensor], way: Any, wanted: str, *, backward: bool
) -> list[Tensor | None]:
    """Gradients of a loss that takes in what leaked, with respect to f or what is above it."""
    torch.manual_seed(0)
    f, encoder = Leaking(way), nn.Linear(16, 16)
    z = run(f, torch.randn(4, 16), encoder(torch.randn(4, 16)))
    kept = f.kept if isinstance(f.kept, list) else [f.kept]
    loss = z.square().mean() + torch.stack([t.mean() for t in kept]).sum()
    parameters = list((f if wanted == "f" else encoder).parameters())
    if not backward:
        return list(torch.autograd.grad(loss, parameters))
    loss.backward()
    return [p.grad for p in parameters]


@pytest.mark.parametrize("backward", [True, False], ids=["backward", "grad"])
@pytest.mark.parametrize("wanted", ["f", "encoder"])
@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("adjoint", CUT)
def test_a_side_loss_raises(adjoint: str, leak: str, wanted: str, backward: bool) -> None:
    run = lambda f, z0, x: solve(f, z0, x, **options_of(adjoint)).z  # noqa: E731
    if (adjoint, leak, wanted, backward) == ("reversible", "of the first evaluation", "f", False):
        # Of f's parameters it is right: the start does not depend on them.
        for a, b in zip(
            *(leaked(r, LEAKS[leak], wanted, backward=False) for r in (run, loop)), strict=True
        ):
            assert a is not None and b is not None
            assert (a - b).norm() <= 2.0**-14 * b.norm()
        return
    with pytest.raises(CaptureError, match=REFUSED):
        leaked(run, LEAKS[leak], wanted, backward=backward)


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("adjoint", WHOLE)
def test_a_side_loss_has_its_gradient(adjoint: str, leak: str) -> None:
    run = lambda f, z0, x: solve(f, z0, x, **options_of(adjoint)).z  # noqa: E731
    for wanted in ("f", "encoder"):
        try:
            got = leaked(run, LEAKS[leak], wanted, backward=True)
        except RuntimeError as error:  # an f that keeps what it computes again is another f
            if "evaluation" in leak and re.match(KEPT, str(error)):
                continue
            raise
        want = leaked(loop, LEAKS[leak], wanted, backward=True)
        for a, b in zip(got, want, strict=True):
            assert a is not None and b is not None
            # Fixed point with 20 fractional bits, through 8 half steps that contract.
            assert (a - b).norm() <= 2.0**-14 * b.norm()


@pytest.mark.parametrize("wanted", ["f", "encoder"])
@pytest.mark.parametrize("leak", ["attribute", "list"])
@pytest.mark.parametrize("backward", [True, False], ids=["backward", "grad"])
def test_a_side_loss_of_a_limit_raises(leak: str, wanted: str, backward: bool) -> None:
    run = lambda f, z0, x: fixed_point(f, z0, x).z  # noqa: E731
    way = LEAKS[leak]

    def last(f: Leaking, h: Tensor, z: Tensor, x: Tensor) -> None:
        way(f, h, z, x)
        if isinstance(f.kept, list):  # the iteration's have no graph
            f.kept = [t for t in f.kept if t.requires_grad]

    with pytest.raises(RuntimeError, match=REFUSED):
        leaked(run, last, wanted, backward=backward)


@pytest.mark.parametrize("around", ["checkpoint", "save_on_cpu"])
def test_a_side_loss_raises_inside_of(around: str) -> None:
    def run(f: Any, z0: Tensor, x: Tensor) -> Tensor:
        if around == "save_on_cpu":
            with torch.autograd.graph.save_on_cpu():
                return solve(f, z0, x, max_steps=4).z
        return checkpoint(lambda x: solve(f, z0, x, max_steps=4).z, x, use_reentrant=False)

    with pytest.raises(RuntimeError, match=REFUSED):
        leaked(run, attribute, "f", backward=True)


def test_a_side_loss_from_a_hook_raises() -> None:
    torch.manual_seed(0)
    f, x, seen = Cell(), torch.randn(4, 16, requires_grad=True), []
    f.of_z.register_forward_hook(lambda module, read, out: seen.append(out.square().mean()))
    z = solve(f, torch.zeros(4, 16), x, max_steps=2).z
    with pytest.raises(CaptureError, match=REFUSED):
        (z.square().mean() + torch.stack(seen[:4]).sum()).backward()


def test_what_does_not_depend_on_the_evaluation_may_be_kept() -> None:
    """A penalty on weights alone, and values that were detached."""

    def way(f: Leaking, h: Tensor, z: Tensor, x: Tensor) -> None:
        f.kept = f.of_z.weight.square().sum() + h.detach().mean()

    run = lambda f, z0, x: solve(f, z0, x, max_steps=4).z  # noqa: E731
    for a, b in zip(*(leaked(r, way, "f", backward=True) for r in (run, loop)), strict=True):
        assert a is not None and b is not None
        assert (a - b).norm() <= 2.0**-14 * b.norm()


@pytest.mark.parametrize("backward", [True, False], ids=["backward", "grad"])
@pytest.mark.parametrize("wanted", ["f", "encoder"])
@pytest.mark.parametrize("leak", ["attribute", "list", "of the last evaluation"])
@pytest.mark.parametrize("kept_graphs", [1, 3, 8])
def test_a_side_loss_raises_beside_kept_graphs(
    kept_graphs: int, leak: str, wanted: str, backward: bool
) -> None:
    run = lambda f, z0, x: solve(f, z0, x, max_steps=4, store_last=kept_graphs).z  # noqa: E731
    with pytest.raises(CaptureError, match=REFUSED):
        leaked(run, LEAKS[leak], wanted, backward=backward)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # what Dynamo does
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("backward", [True, False], ids=["backward", "grad"])
@pytest.mark.parametrize("wanted", ["f", "encoder"])
def test_a_side_loss_of_a_compiled_f_raises(wanted: str, backward: bool) -> None:
    torch.compiler.reset()

    def run(f: Any, z0: Tensor, x: Tensor) -> Tensor:
        f.compile(backend="eager")
        return solve(f, z0, x, max_steps=4).z

    with pytest.raises(CaptureError, match=REFUSED):
        leaked(run, attribute, wanted, backward=backward)


def test_a_gradient_inside_of_f_by_its_weights() -> None:
    """Of the weights where they stand: the state is given. Test-time training does so."""
    torch.manual_seed(0)
    w, encoder = torch.randn(16, 16, requires_grad=True), nn.Linear(16, 16)
    module = nn.ParameterDict({"w": w})

    def f(z: Tensor, x: Tensor) -> Tensor:
        z = z.detach() + 0.0 * z
        inner = (z.detach() @ module["w"] - x).square().mean()
        (g,) = torch.autograd.grad(inner, module["w"], create_graph=True)
        return torch.tanh(0.5 * z @ (module["w"] - 0.1 * g) / 8 + x)

    x, found = torch.randn(4, 16), []
    for adjoint in ("reversible", "hooks", "checkpoint", "backprop"):
        z = solve(f, torch.zeros(4, 16), encoder(x), adjoint=adjoint, max_steps=3).z
        found.append(torch.autograd.grad(z.square().sum(), [module["w"], *encoder.parameters()]))
    for grads in found[:-1]:
        assert all(map(torch.equal, grads, found[-1]))


# ---- what f keeps and reads again ------------------------------------------------------------


class Caching(Cell):
    """A cell that computes something of its input once, and keeps it."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.u = what, None

    def compute(self, x: Tensor) -> Tensor:
        if self.what == "weight":
            return x + self.of_x.weight @ self.of_x.weight
        return {"input": x, "scaled": 2 * x, "learned": self.of_x(x)}[self.what]

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        if self.u is None:
            self.u = self.compute(x[:16] if self.what == "weight" else x)
        return torch.tanh(self.of_z(z) + self.u)


KEPT = "f: expected to (compute what it reads anew|save the same tensors)"


@pytest.mark.parametrize("what", ["input", "scaled", "learned", "weight"])
@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "checkpoint", "functional"])
def test_an_injection_computed_once(adjoint: str, what: str) -> None:
    """Right, or refused by name."""
    torch.manual_seed(0)
    w, z0 = torch.randn(16, 16, requires_grad=True), torch.zeros(16, 16)
    f = Caching(what)
    (want,) = torch.autograd.grad(loop(f, z0, torch.sin(w)).square().sum(), w)
    f.u = None
    try:
        z = solve(f, z0, torch.sin(w), **options_of(adjoint)).z
        (got,) = torch.autograd.grad(z.square().sum(), w)
    except RuntimeError as error:
        if not re.match(KEPT, str(error)):
            raise
    else:
        assert (got - want).norm() <= 2.0**-14 * want.norm()


def test_what_is_kept_is_refused_in_the_forward_pass() -> None:
    x = torch.randn(16, 16, requires_grad=True)
    for what in ("input", "scaled", "learned", "weight"):
        f = Caching(what)
        with pytest.raises(
            CaptureError, match=r"compute what it reads anew.*pass it as an argument"
        ):
            solve(f, torch.zeros(16, 16), torch.sin(x))
        # And in the next solve, which finds it there.
        with pytest.raises(CaptureError, match=r"kept by f since an earlier solve|reads anew"):
            solve(f, torch.zeros(16, 16), torch.sin(x))


@pytest.mark.parametrize("adjoint", ["implicit", "phantom"])
@pytest.mark.parametrize("what", ["scaled", "learned"])
def test_what_is_kept_in_an_iteration_to_a_limit(what: str, adjoint: str) -> None:
    x = torch.randn(16, 16, requires_grad=True)
    with pytest.raises(CaptureError, match="compute what it reads anew"):
        fixed_point(Caching(what), torch.zeros(16, 16), x, adjoint=adjoint)  # type: ignore[arg-type]


def test_a_limit_may_close_over_what_was_computed_before() -> None:
    torch.manual_seed(0)
    f, w = Cell(), torch.randn(4, 16, requires_grad=True)
    x = torch.sin(w)
    values = []
    for run in (lambda z: f(z, x), f):
        args = () if run is not f else (x,)
        z = fixed_point(run, torch.zeros(4, 16), *args, tol=1e-7, max_steps=200).z
        values.append(torch.autograd.grad(z.square().sum(), w, retain_graph=True)[0])
    assert torch.equal(*values)


def test_the_state_of_an_earlier_evaluation() -> None:
    before: list[Tensor] = []

    def f(z: Tensor) -> Tensor:
        before.append(z)
        return torch.tanh(0.5 * z + 0.1 * before[max(len(before) - 2, 0)])

    with pytest.raises(CaptureError, match="compute what it reads anew"):
        solve(f, torch.ones(4, requires_grad=True))


def test_a_container_that_is_no_pytree_is_named() -> None:
    class Graph:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    w, f = torch.randn(4, 16, requires_grad=True), Cell()
    with pytest.raises(
        CaptureError, match=r"Graph is no pytree.*register_pytree_node.*tuple or dict"
    ):
        solve(lambda z, graph: f(z, graph.x), torch.zeros(4, 16), Graph(torch.sin(w)))
