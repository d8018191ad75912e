"""Rows of docs/composes.md: a solve in various surroundings, with a given adjoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from tests.solver.cells import MLP, Normed
from tests.solver.composing import (
    F32,
    F64,
    Feature,
    differentiated,
    feature,
    found,
    leaf,
    solved,
)
from torch_revdeq import RevDEQ

AROUND: dict[str, Feature] = {}


class Around(nn.Module):
    """A solve in a module, for ``functional_call``."""

    def __init__(self, adjoint: str) -> None:
        super().__init__()
        self.f, self.adjoint = Normed(dtype=F64), adjoint

    def forward(self, x: Tensor) -> Tensor:
        return solved(self.adjoint, self.f, x).z


def called(adjoint: str, *, computed: bool) -> list[Tensor]:
    """With weights and buffers other than the module's own, which must not change."""
    module, x = Around(adjoint), torch.randn(6, 16, dtype=F64)
    own = {n: (0.5 * p.detach()).requires_grad_() for n, p in module.named_parameters()}
    given = {n: p - 0.1 * p.square() for n, p in own.items()} if computed else own
    buffers = {n: b.clone() for n, b in module.named_buffers()}
    before = [b.clone() for b in module.buffers()]
    z = functional_call(module, {**given, **buffers}, (x,))
    (z + x).square().sum().backward()  # BatchNorm only preserves the norm of z
    assert all(map(torch.equal, module.buffers(), before))
    assert all(p.grad is None for p in module.parameters())
    return [z, *(p.grad for p in own.values() if p.grad is not None), *buffers.values()]


AROUND |= {
    "functional_call around the solve": lambda adjoint: called(adjoint, computed=False),
    "functional_call with computed weights": lambda adjoint: called(adjoint, computed=True),
}


@feature("no_grad", AROUND)
def _no_grad(adjoint: str) -> list[Tensor]:
    f, x = MLP(dtype=F64), torch.randn(6, 16, dtype=F64)
    with torch.no_grad():
        solution = solved(adjoint, f, x)
    assert not solution.z.requires_grad
    return [solution.z, solution.y]


@feature("retain_graph", AROUND)
def _retained(adjoint: str) -> list[Tensor]:
    f, x = MLP(dtype=F64), torch.randn(6, 16, dtype=F64)
    z, parameters = solved(adjoint, f, x).z, list(f.parameters())
    first = torch.autograd.grad(z.sum(), parameters, retain_graph=True)
    return [*first, *torch.autograd.grad(z.square().sum(), parameters)]


def _second(dtype: torch.dtype, state: Any) -> Feature:
    def run(adjoint: str) -> list[Tensor]:
        f, x = MLP(dtype=dtype), leaf(6, 16, dtype=dtype)
        z = solved(adjoint, f, x, state=state).z
        (first,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
        return list(torch.autograd.grad(first.square().sum(), [x, *f.parameters()]))

    return run


AROUND |= {
    "second derivative, float state": _second(F64, F64),
    "second derivative, exact state": _second(F32, "exact"),
}


@feature("batched gradients", AROUND)
def _batched(adjoint: str) -> list[Tensor]:
    f, x = MLP(dtype=F64), torch.randn(2, 16, dtype=F64)
    run = lambda x: solved(adjoint, f, x).z  # noqa: E731
    rows: Any = torch.autograd.functional.jacobian(run, x, vectorize=True)
    return [rows]


@feature("non-reentrant checkpoint around the solve", AROUND)
def _inside_checkpoint(adjoint: str) -> list[Tensor]:
    f, x = MLP(p=0.3, dtype=F64), leaf(6, 16)
    z: Any = checkpoint(lambda x: solved(adjoint, f, x).z, x, use_reentrant=False)
    return differentiated([z], x, list(f.parameters()))


@feature("FlopCounterMode", AROUND)
def _counted(adjoint: str) -> list[Tensor]:
    f, x = MLP(dtype=F64), leaf(6, 16)
    with FlopCounterMode(display=False) as mode:
        z = solved(adjoint, f, x, z0=0 * x).z
        forward = mode.get_total_flops()
        z.square().sum().backward()
    assert mode.get_total_flops() >= 3 * forward > 0
    return [z, *(t.grad for t in (x, *f.parameters()) if t.grad is not None)]


def _transformed(transform: Callable[[Any, Tensor, Tensor], Any]) -> Feature:
    def run(adjoint: str) -> list[Tensor]:
        w, x = torch.randn(4, 4, dtype=F64), torch.randn(4, 4, dtype=F64)

        def loss(w: Tensor, x: Tensor) -> Tensor:
            f = lambda z, x, w: torch.tanh(z @ w + x)  # noqa: E731
            return solved(adjoint, f, x, w, state="auto").z.square().sum()

        return [transform(loss, w, x)]

    return run


AROUND |= {
    "torch.func.grad": _transformed(lambda loss, w, x: grad(loss)(w, x)),
    "torch.func.vmap": _transformed(lambda loss, w, x: vmap(loss, (None, 0))(w, x)),
    "torch.func.jvp": _transformed(lambda loss, w, x: jvp(loss, (w, x), (x, w))[1]),
    "torch.func.hessian": _transformed(lambda loss, w, x: hessian(loss)(w, x)),
}


def layer(adjoint: str, **options: Any) -> RevDEQ:
    options = {"max_steps": 2, "beta": 0.4, "state": F64, "adjoint": adjoint, **options}
    return RevDEQ(MLP(dtype=F64), **options)


@feature("fullgraph", AROUND)
def _whole(adjoint: str) -> list[Tensor]:
    made, x = layer(adjoint, rng="none" if adjoint == "functional" else "auto"), leaf(6, 16)
    z = torch.compile(made, backend="aot_eager", fullgraph=True)(x)
    return differentiated([z], x, list(made.parameters()))


@feature("torch.export", AROUND)
def _exported(adjoint: str) -> list[Tensor]:
    made, x = layer(adjoint), leaf(6, 16)
    program: Any = torch.export.export(made, (x,)).module()
    z = program(x)
    assert torch.equal(z, made(x))
    return differentiated([z], x, list(program.parameters()))


@feature("meta device", AROUND)
def _meta(adjoint: str) -> list[Tensor]:
    with torch.device("meta"):
        like = found(adjoint)
    return [torch.zeros(t.shape, dtype=t.dtype) for t in like]
