"""What autograd takes in a loop it takes in f, with every adjoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from tests.solver.cells import Energy, Tied, TwoMaps
from tests.solver.composing import BOUND
from tests.solver.solving import assert_alike, found_by, loop
from torch_revdeq import solve

F64 = torch.float64
STEPS = 3
ADJOINTS = ["functional", "hooks", "checkpoint", "backprop"]
ALL = ["reversible", *ADJOINTS]

pytestmark = [
    # Of the loop, whose start requires no gradient.
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning"),
]


def solved(adjoint: Any, f: Callable[..., Any], *args: Tensor) -> Tensor:
    """z by an adjoint, or by the plain loop."""
    z0 = torch.zeros(3, 4, dtype=F64)
    if adjoint is None:
        return loop(f, z0, *args, steps=STEPS)[0]
    return solve(f, z0, *args, adjoint=adjoint, state=F64, max_steps=STEPS).z


def derivatives(
    adjoint: Any, f: nn.Module, args: Sequence[Tensor], *, second: bool
) -> list[Tensor | None]:
    """First and second derivatives of a loss, of the arguments and parameters."""
    wrt = [t for t in (*args, *f.parameters()) if t.requires_grad]
    z = solved(adjoint, f, *args)
    first = torch.autograd.grad(z.square().sum(), wrt, create_graph=second, allow_unused=True)
    if not second:
        return list(first)
    parts = [g.abs().square().sum() for g in first if g is not None and g.requires_grad]
    again = torch.autograd.grad(torch.stack(parts).sum(), wrt, allow_unused=True)
    return [*first, *again]


def assert_near(got: Sequence[Tensor | None], want: Sequence[Tensor | None]) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        if a is None or b is None:
            # Unused: autograd says None, or of what it cannot tell zero.
            rest = a if b is None else b
            assert rest is None or not rest.any()
            continue
        assert a.dtype == b.dtype and a.layout == b.layout
        error, size = (t if t.layout == torch.strided else t.to_dense() for t in (a - b, b))
        assert error.norm() <= BOUND * size.norm()
    assert any(b is not None and bool(b.any()) for b in want)


class Sine(torch.autograd.Function):
    """Written in the older way, which transforms of torch.func do not take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()


class Custom(TwoMaps):
    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return Sine.apply(super().forward(z, x))


class Spectrum(nn.Module):
    """Complex parameters and a complex argument; the state is real."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(0.3 * torch.randn(4, 4, dtype=torch.complex128))

    def forward(self, z: Tensor, x: Tensor, c: Tensor) -> Tensor:
        turned = z.to(c.dtype) @ self.w + c
        return torch.tanh(turned.real + (torch.fft.fft(x) * c).imag)


class Graph(TwoMaps):
    """A layer of a graph network, with a sparse matrix among its arguments."""

    def forward(self, z: Tensor, x: Tensor, edges: Tensor) -> Tensor:
        return super().forward(edges @ z, x)


class Hooked(TwoMaps):
    """Clamps a gradient inside of f."""

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        h = self.of_z(z)
        if h.requires_grad:
            h.register_hook(lambda grad: grad.clamp(-0.05, 0.05))
        return torch.tanh(h + self.of_x(x))


def of(kind: Any) -> Callable[[], Any]:
    return lambda: kind(4, dtype=F64)


def full_backward_hook(part: str) -> Callable[[], TwoMaps]:
    """A cell with a module in it that halves the gradients of its inputs."""

    def half(module: nn.Module, inputs: Any, _: Any) -> Any:
        return tuple(None if grad is None else 0.5 * grad for grad in inputs)

    def make() -> TwoMaps:
        f = TwoMaps(4, dtype=F64)
        f.get_submodule(part).register_full_backward_hook(half)
        return f

    return make


def forward_hook() -> TwoMaps:
    f = TwoMaps(4, dtype=F64)
    f.of_z.register_forward_hook(lambda module, inputs, out: out.mul(0.5))
    return f


def x() -> Tensor:
    return torch.randn(3, 4, dtype=F64, requires_grad=True)


def edges(layout: str, *, learned: bool) -> Tensor:
    dense = torch.rand(3, 3, dtype=F64) * (torch.rand(3, 3) > 0.4)
    sparse = dense.to_sparse() if layout == "coo" else dense.to_sparse_csr()
    return sparse.requires_grad_(learned)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]], bool]] = {
    "tied": (of(Tied), lambda: (x(),), True),
    "energy": (of(Energy), lambda: (x(),), True),
    "energy of a constant": (of(Energy), lambda: (x().detach(),), True),
    "Function without setup_context": (of(Custom), lambda: (x(),), True),
    "complex": (
        Spectrum,
        lambda: (x(), torch.randn(3, 4, dtype=torch.complex128, requires_grad=True)),
        True,
    ),
    "sparse COO": (of(Graph), lambda: (x(), edges("coo", learned=False)), True),
    "sparse CSR": (of(Graph), lambda: (x(), edges("csr", learned=False)), True),
    "learned sparse COO": (of(Graph), lambda: (x(), edges("coo", learned=True)), False),
    "learned sparse CSR": (of(Graph), lambda: (x(), edges("csr", learned=True)), False),
    "a tensor's hook": (of(Hooked), lambda: (x(),), False),
    "full backward hook": (full_backward_hook(""), lambda: (x(),), False),
    "full backward hook inside": (full_backward_hook("of_z"), lambda: (x(),), False),
    "forward hook": (forward_hook, lambda: (x(),), True),
    "scripted": (lambda: torch.jit.script(TwoMaps(4, dtype=F64)), lambda: (x(),), False),
}
"""f, its arguments, and whether second derivatives are compared too."""


@pytest.mark.parametrize("adjoint", ALL)
@pytest.mark.parametrize("name", CASES)
def test_the_derivatives_of_the_loop(name: str, adjoint: str) -> None:
    make, arguments, second = CASES[name]
    assert_near(
        *found_by(lambda a: derivatives(a, make(), arguments(), second=second), adjoint, None)
    )


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("adjoint", ["hooks", "checkpoint"])
def test_an_energy_has_the_bits_of_backprop(adjoint: str, learned: bool) -> None:
    def gradients(adjoint: Any) -> Any:
        f, start = Energy(4), torch.randn(3, 4, requires_grad=learned)
        z = solve(f, torch.zeros(3, 4), start, adjoint=adjoint, state="exact", max_steps=8).z
        wrt = [p for p in (start, *f.parameters()) if p.requires_grad]
        return torch.autograd.grad(z.square().sum(), wrt)

    assert_alike(gradients, adjoint)


# ---- in other surroundings ---------------------------------------------------------------------


def around(where: str, run: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    if where == "checkpoint":
        return checkpoint(run, start, use_reentrant=False)
    with save_on_cpu() if where == "save_on_cpu" else nullcontext():
        return run(start)


@pytest.mark.parametrize("where", ["nothing", "checkpoint", "save_on_cpu"])
@pytest.mark.parametrize("make", [of(TwoMaps), of(Energy)], ids=["cell", "energy"])
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_hook_on_a_parameter_sees_its_whole_gradient_once(
    adjoint: str, make: Callable[[], nn.Module], where: str
) -> None:
    calls = []

    def hook(grad: Tensor) -> Tensor:
        calls.append(grad)
        return 0.5 * grad

    def found(adjoint: Any) -> list[Any]:
        f, start = make(), x()
        next(f.parameters()).register_hook(hook)
        around(where, lambda s: solved(adjoint, f, s), start).square().sum().backward()
        return [start.grad, *(p.grad for p in f.parameters())]

    results = found_by(found, adjoint, None)
    assert len(calls) == 2
    assert_near(*results)
