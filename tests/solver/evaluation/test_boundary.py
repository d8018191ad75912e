"""The edge of f: a gradient enters an evaluation through what f returned, or raises."""

from __future__ import annotations

import re
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.solver.cells import TwoMaps
from tests.solver.solving import assert_alike, loop
from torch_revdeq import CaptureError, fixed_point, solve

F64 = torch.float64
CUT = ("reversible", "functional")
"""Adjoints that evaluate f on leaves of their own: a side loss must raise."""
WHOLE = ("hooks", "checkpoint", "backprop")
"""Adjoints in autograd's own graph: a side loss has its gradient."""
REFUSED = "f: expected its tensors to reach the loss only through what it returns.*Return it"


KEPT = "f: expected to (recompute what it reads|save the same tensors)"


def options_of(adjoint: str) -> dict[str, Any]:
    return {"adjoint": adjoint, "max_steps": 4, "state": F64 if adjoint == "functional" else "auto"}


class Leaking(TwoMaps):
    """A cell that contracts, and from which `way` takes tensors: of the hidden state and of z."""

    def __init__(self, way: Callable[[Leaking, Tensor, Tensor], Any]) -> None:
        super().__init__()
        nn.init.orthogonal_(self.of_z.weight, 0.4)
        self.way = way
        self.kept: Any = None
        self.calls = 0

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        h = self.of_z(z) + self.of_x(x)
        self.calls += 1
        self.way(self, h, z)
        return torch.tanh(h)


def attribute(f: Leaking, h: Tensor, z: Tensor) -> None:
    f.kept = h.square().mean()


def in_a_list(f: Leaking, h: Tensor, z: Tensor) -> None:
    f.kept = [*(f.kept or ()), h.square().mean()]


def added_up(f: Leaking, h: Tensor, z: Tensor) -> None:
    f.kept = h.square().mean() + (0.0 if f.kept is None else f.kept)


def of_the_state(f: Leaking, h: Tensor, z: Tensor) -> None:
    f.kept = z.square().mean()


def of_a_later_state(f: Leaking, h: Tensor, z: Tensor) -> None:
    f.kept = z if f.calls == 5 else f.kept


def of_evaluation(number: int) -> Callable[[Leaking, Tensor, Tensor], None]:
    def way(f: Leaking, h: Tensor, z: Tensor) -> None:
        f.kept = h.square().mean() if f.calls == number else f.kept

    return way


LEAKS = {
    "of the last evaluation": of_evaluation(8),
    "of a later state": of_a_later_state,
    "attribute": attribute,
    "list": in_a_list,
    "sum": added_up,
    "of the state": of_the_state,
    "of the first evaluation": of_evaluation(1),
    "of the second evaluation": of_evaluation(2),
    "of the sixth evaluation": of_evaluation(6),
}
OVERWRITTEN = ("of the second evaluation", "of the sixth evaluation")
"""Of states that are overwritten in place by then, which torch may say first."""
Run = Callable[..., Tensor]


def by(adjoint: str = "reversible", **options: Any) -> Run:
    return lambda f, z0, x: solve(f, z0, x, **{**options_of(adjoint), **options}).z


def looped(f: Any, z0: Tensor, x: Tensor) -> Tensor:
    return loop(f, z0, x)[0]


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


def assert_near(got: list[Tensor | None], want: list[Tensor | None]) -> None:
    """To the roundings of a fixed point of 20 bits, through 8 half steps that contract."""
    for a, b in zip(got, want, strict=True):
        assert a is not None and b is not None
        assert (a - b).norm() <= 2.0**-14 * b.norm()


@pytest.mark.parametrize("backward", [True, False], ids=["backward", "grad"])
@pytest.mark.parametrize("wanted", ["f", "encoder"])
@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("adjoint", CUT)
def test_a_side_loss_raises(adjoint: str, leak: str, wanted: str, backward: bool) -> None:
    if (adjoint, leak, wanted, backward) == ("reversible", "of the first evaluation", "f", False):
        # Of f's parameters it is right: the start does not depend on them.
        assert_near(*(leaked(r, LEAKS[leak], "f", backward=False) for r in (by(adjoint), looped)))
        return
    error, said = CaptureError, REFUSED
    if leak in OVERWRITTEN:
        error, said = RuntimeError, f"{REFUSED}|modified by an inplace operation"
    with pytest.raises(error, match=said):
        leaked(by(adjoint), LEAKS[leak], wanted, backward=backward)


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("adjoint", WHOLE)
def test_a_side_loss_has_its_gradient(adjoint: str, leak: str) -> None:
    for wanted in ("f", "encoder"):
        try:
            got = leaked(by(adjoint), LEAKS[leak], wanted, backward=True)
        except RuntimeError as error:  # an f that keeps what it computes again is another f
            if "evaluation" in leak and re.match(KEPT, str(error)):
                continue
            raise
        assert_near(got, leaked(looped, LEAKS[leak], wanted, backward=True))


@pytest.mark.parametrize("adjoint", CUT)
def test_what_leaks_and_is_not_used_is_nobodys_business(adjoint: str) -> None:
    def gradients(way: Any) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        f, x = Leaking(way), torch.randn(4, 16, requires_grad=True)
        loss = by(adjoint)(f, torch.zeros(4, 16), x).square().sum()
        loss = loss if f.kept is None else loss + f.kept.detach()
        return torch.autograd.grad(loss, [x, *f.parameters()])

    assert all(map(torch.equal, gradients(added_up), gradients(lambda *_: None)))


@pytest.mark.parametrize("wanted", ["f", "encoder"])
@pytest.mark.parametrize("leak", ["attribute", "list"])
@pytest.mark.parametrize("backward", [True, False], ids=["backward", "grad"])
def test_a_side_loss_of_a_limit_raises(leak: str, wanted: str, backward: bool) -> None:
    way = LEAKS[leak]

    def last(f: Leaking, h: Tensor, z: Tensor) -> None:
        way(f, h, z)
        if isinstance(f.kept, list):  # the iteration's have no graph
            f.kept = [t for t in f.kept if t.requires_grad]

    with pytest.raises(RuntimeError, match=REFUSED):
        leaked(lambda f, z0, x: fixed_point(f, z0, x).z, last, wanted, backward=backward)


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
    f, x, seen = TwoMaps(), torch.randn(4, 16, requires_grad=True), []
    f.of_z.register_forward_hook(lambda module, read, out: seen.append(out.square().mean()))
    z = solve(f, torch.zeros(4, 16), x, max_steps=2).z
    with pytest.raises(CaptureError, match=REFUSED):
        (z.square().mean() + torch.stack(seen[:4]).sum()).backward()


def test_what_does_not_depend_on_the_evaluation_may_be_kept() -> None:
    """A penalty on weights alone, and values that were detached."""

    def way(f: Leaking, h: Tensor, z: Tensor) -> None:
        f.kept = f.of_z.weight.square().sum() + h.detach().mean()

    assert_near(*(leaked(run, way, "f", backward=True) for run in (by(), looped)))


@pytest.mark.parametrize("backward", [True, False], ids=["backward", "grad"])
@pytest.mark.parametrize("wanted", ["f", "encoder"])
@pytest.mark.parametrize("leak", ["attribute", "list", "of the last evaluation"])
@pytest.mark.parametrize("kept_graphs", [1, 3, 8])
def test_a_side_loss_raises_beside_kept_graphs(
    kept_graphs: int, leak: str, wanted: str, backward: bool
) -> None:
    with pytest.raises(CaptureError, match=REFUSED):
        leaked(by(store_last=kept_graphs), LEAKS[leak], wanted, backward=backward)


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

    def gradients(adjoint: Any) -> Any:
        x = encoder(torch.randn(4, 16))
        z = solve(f, torch.zeros(4, 16), x, adjoint=adjoint, max_steps=3).z
        return torch.autograd.grad(z.square().sum(), [module["w"], *encoder.parameters()])

    assert_alike(gradients, "reversible", "hooks", "checkpoint")


def test_a_loss_of_the_first_state_alone_raises() -> None:
    """Of a start without gradient it could do no harm: the rule is one for all evaluations."""
    held: list[Tensor] = []

    def f(z: Tensor, x: Tensor) -> Tensor:
        held.append(2 * z)
        return torch.tanh(0.3 * z + x)

    x = torch.randn(4, requires_grad=True)
    z = solve(f, torch.zeros(4), x, max_steps=3).z
    with pytest.raises(CaptureError, match="f: expected its tensors to reach the loss"):
        (z.sum() + held[0].sum()).backward()


@pytest.mark.parametrize("leaves", [1, 2])
def test_a_loss_of_the_way_back_raises(leaves: int) -> None:
    """Of an f for whose gradient nothing is saved: autograd itself would refuse the others."""
    held: SimpleQueue[Any] = SimpleQueue()  # what it holds is not seen, nor put back
    w = torch.randn(4, requires_grad=True)

    def f(z: Any) -> Any:
        out = {name: w - leaf for name, leaf in z.items()}
        held.put(out)
        return out

    z = solve(f, {name: torch.zeros(4) for name in "ab"[:leaves]}, max_steps=2).z
    torch.cat([*z.values()]).sum().backward()
    *_, last = [held.get() for _ in range(held.qsize())]
    with pytest.raises(CaptureError, match="f: expected its tensors to reach the loss"):
        last["a"].sum().backward()
