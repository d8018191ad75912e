"""What the rows of docs/composes.md are about: a solve with each feature, by a given adjoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from tests.solver.cells import MLP
from torch_revdeq import RevDEQ, solve

F32, F64 = torch.float32, torch.float64

Feature = Callable[[str], list[Tensor]]
FEATURES: dict[str, Feature] = {}


def feature(name: str) -> Callable[[Feature], Feature]:
    """What a row is about: gradients and solutions by a given adjoint."""

    def note(function: Feature) -> Feature:
        FEATURES[name] = function
        return function

    return note


def found(
    adjoint: str,
    f: Callable[..., Any] | None = None,
    *,
    dtype: torch.dtype = F64,
    wrt: tuple[Tensor, ...] = (),
    z0: Callable[[Tensor], Any] | None = None,
    **options: Any,
) -> list[Tensor]:
    """z, y, all gradients and the saved states of a solve of f, by default of an MLP."""
    f = MLP(dtype=dtype) if f is None else f
    x = torch.randn(6, 16, dtype=dtype, requires_grad=True)
    start = torch.zeros_like(x) if z0 is None else z0(x)
    options = {"max_steps": 2, "beta": 0.4, "state": dtype, "adjoint": adjoint, **options}
    solution = solve(f, start, x, **options)
    outputs = pytree.tree_leaves([solution.z, solution.y, *solution.saved])
    parameters = f.parameters() if isinstance(f, nn.Module) else ()
    tensors = [x, *wrt, *(p for p in parameters if p.requires_grad)]
    losses = torch.stack([t.double().square().sum() for t in outputs])
    return [*outputs, *torch.autograd.grad(losses.sum(), tensors)]


def of_state(state: Any, dtype: torch.dtype) -> Feature:
    return lambda adjoint: found(adjoint, dtype=dtype, state=state)


FEATURES |= {
    "exact state": of_state("exact", F32),
    "float32 state": of_state(F32, F32),
    "float64 state": of_state(F64, F64),
    "bfloat16 state": of_state(torch.bfloat16, torch.bfloat16),
}


def of_options(**options: Any) -> Feature:
    return lambda adjoint: found(adjoint, **options)


FEATURES |= {
    "beta for each step": of_options(beta=[0.3, 0.5]),
    "random depth": of_options(max_steps=lambda: int(torch.randint(2, 4, ()))),
    "tol": of_options(tol=0.3, max_steps=4),
    "per_sample": of_options(tol=0.3, per_sample=True, max_steps=4),
    "per_sample=2": of_options(tol=0.3, per_sample=2, max_steps=4),
    "residual_mask": of_options(tol=0.3, residual_mask=torch.arange(6) < 4, max_steps=4),
    "save_at": of_options(save_at=[1, 2]),
    "backward_steps": of_options(backward_steps=1),
    "store_last": of_options(store_last=1),
}


@feature("y0")
def _y0(adjoint: str) -> list[Tensor]:
    y0 = torch.randn(6, 16, dtype=F64, requires_grad=True)
    return found(adjoint, y0=y0, wrt=(y0,))


@feature("pytree as state")
def _pytree(adjoint: str) -> list[Tensor]:
    w = torch.randn(16, dtype=F64, requires_grad=True)

    def f(z: dict[str, Tensor], x: Tensor, w: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(z["a"] * w + x)
        return {"a": h, "b": torch.tanh(z["b"] + h.mean(1))}

    x = torch.randn(6, 16, dtype=F64)
    z0 = {"a": torch.zeros_like(x), "b": torch.zeros(6, dtype=F64)}
    z = solve(f, z0, x, w, max_steps=2, beta=0.4, adjoint=adjoint).z  # type: ignore[arg-type]
    return [*z.values(), *torch.autograd.grad(z["a"].sum() + z["b"].square().sum(), w)]


def _learned(dtype: torch.dtype, state: Any, shape: tuple[int, ...] = ()) -> Feature:
    def run(adjoint: str) -> list[Tensor]:
        beta = torch.full(shape, 0.4, dtype=dtype, requires_grad=not shape)
        wrt = () if shape else (beta,)
        return found(adjoint, dtype=dtype, state=state, beta=beta, wrt=wrt)

    return run


FEATURES |= {
    "beta that learns, exact state": _learned(F32, "exact"),
    "beta that learns, float state": _learned(F64, F64),
    "beta for each channel": _learned(F64, F64, (16,)),
}


class Auxiliary(MLP):
    """An MLP that returns losses beside its state."""

    def forward(self, z: Tensor, x: Tensor | None = None) -> Any:
        new = super().forward(z, x)
        return new, {"penalty": new.square().mean(), "rows": (z * new).sum(1)}


@feature("has_aux")
def _has_aux(adjoint: str) -> list[Tensor]:
    f, x = Auxiliary(dtype=F64), torch.randn(6, 16, dtype=F64, requires_grad=True)
    options: dict[str, Any] = {"has_aux": True, "adjoint": adjoint, "state": F64}
    solution = solve(f, torch.zeros_like(x), x, max_steps=2, beta=0.4, **options)
    loss = solution.z.square().sum() + sum(t.sum() for t in solution.aux.values())
    outputs = [solution.z, *solution.aux.values()]
    return [*outputs, *torch.autograd.grad(loss, [x, *f.parameters()])]


@feature("pass_step")
def _pass_step(adjoint: str) -> list[Tensor]:
    of_step = torch.randn(2, 16, dtype=F64, requires_grad=True)

    def f(z: Tensor, x: Tensor, of_step: Tensor, step: int) -> Tensor:
        return torch.tanh(0.5 * z + x + of_step[step])

    x = torch.randn(6, 16, dtype=F64, requires_grad=True)
    options: dict[str, Any] = {"pass_step": True, "adjoint": adjoint, "state": F64}
    z = solve(f, torch.zeros_like(x), x, of_step, max_steps=2, beta=0.4, **options).z
    return [z, *torch.autograd.grad(z.square().sum(), [x, of_step])]


@feature("keyword arguments of f")
def _keywords(adjoint: str) -> list[Tensor]:
    mlp, scale = MLP(dtype=F64), torch.randn(16, dtype=F64, requires_grad=True)

    def f(z: Tensor, x: Tensor, mlp: Any, *, scale: Tensor, parts: dict[str, Any]) -> Tensor:
        weights = (parts["w"], parts["b"])
        return torch.tanh(torch.nn.functional.linear(z * scale, *weights) + x * parts["by"])

    x = torch.randn(6, 16, dtype=F64, requires_grad=True)
    b, w = (torch.randn(n, dtype=F64, requires_grad=True) for n in ((16,), (16, 16)))
    kwargs = {"scale": scale, "parts": {"w": 0.1 * w, "b": b, "by": 2}}
    options: dict[str, Any] = {"kwargs": kwargs, "adjoint": adjoint, "state": F64}
    z = solve(f, torch.zeros_like(x), x, mlp, max_steps=2, beta=0.4, **options).z
    return [z, *torch.autograd.grad(z.square().sum(), [x, scale, w, b])]


class Leaving(MLP):
    """An MLP that leaves a loss on itself."""

    penalty: Tensor

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        new = super().forward(z, x)
        self.penalty = new.square().mean()
        return new


@feature("a loss left on f, not returned")
def _left(adjoint: str) -> list[Tensor]:
    f, x = Leaving(dtype=F64), torch.randn(6, 16, dtype=F64, requires_grad=True)
    options: dict[str, Any] = {"adjoint": adjoint, "state": F64}
    z = solve(f, torch.zeros_like(x), x, max_steps=2, beta=0.4, **options).z
    return [z, *torch.autograd.grad(z.square().sum() + f.penalty, [x, *f.parameters()])]


class Caching(MLP):
    """An MLP that computes what it makes of the input in its first evaluation, and keeps it."""

    once: Tensor | None = None

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        if self.once is None:
            self.once = self.b(self.a(x))
        return super().forward(z, self.once)


@feature("an input injection that f computes once")
def _cached(adjoint: str) -> list[Tensor]:
    return found(adjoint, Caching(dtype=F64))


def _loop_of_cached(_: str) -> list[Tensor]:
    f, x = Caching(dtype=F64), torch.randn(6, 16, dtype=F64, requires_grad=True)
    y = z = torch.zeros_like(x)
    for _step in range(2):
        y = 0.6 * y + 0.4 * f(z, x)
        z = 0.6 * z + 0.4 * f(y, x)
    loss = z.square().sum() + y.square().sum()
    return [z, y, *torch.autograd.grad(loss, [x, *f.parameters()])]


class Around(nn.Module):
    """A solve in a module, for ``functional_call``."""

    def __init__(self, adjoint: str) -> None:
        super().__init__()
        self.f, self.adjoint = MLP(dtype=F64), adjoint

    def forward(self, x: Tensor) -> Tensor:
        options: dict[str, Any] = {"adjoint": self.adjoint, "state": F64}
        return solve(self.f, torch.zeros_like(x), x, max_steps=2, beta=0.4, **options).z


@feature("functional_call around the solve")
def _called(adjoint: str) -> list[Tensor]:
    module, x = Around(adjoint), torch.randn(6, 16, dtype=F64)
    copies = {n: (0.5 * p.detach()).requires_grad_() for n, p in module.named_parameters()}
    z = functional_call(module, copies, (x,))
    return [z, *torch.autograd.grad(z.square().sum(), list(copies.values()))]


@feature("functional_call with computed weights")
def _called_with_computed(adjoint: str) -> list[Tensor]:
    module, x = Around(adjoint), torch.randn(6, 16, dtype=F64)
    named = dict(module.named_parameters())
    inner = torch.autograd.grad(module.f(x).square().mean(), list(named.values()))
    rows = zip(named.items(), inner, strict=True)
    fast = {name: p - 0.5 * g * p.sum() for (name, p), g in rows}
    z = functional_call(module, fast, (x,))
    return [z, *torch.autograd.grad(z.square().sum(), list(named.values()))]


@feature("dropout")
def _dropout(adjoint: str) -> list[Tensor]:
    return found(adjoint, MLP(p=0.3, dtype=F64))


@feature("autocast")
def _autocast(adjoint: str) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        return found(adjoint, dtype=F32)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.norm = MLP(dtype=F64), nn.BatchNorm1d(16, dtype=F64)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.norm(self.mlp(z, x))


@feature("BatchNorm in training")
def _batch_norm(adjoint: str) -> list[Tensor]:
    f = Normed()
    result = found(adjoint, f)
    return [*result, f.norm.running_mean, f.norm.num_batches_tracked]  # type: ignore[list-item]


def _spectral() -> MLP:
    f = MLP(dtype=F64)
    nn.utils.parametrizations.spectral_norm(f.a)
    return f


@feature("spectral_norm in training")
def _spectral_norm(adjoint: str) -> list[Tensor]:
    return found(adjoint, _spectral())


def _spectral_loop(_: str) -> list[Tensor]:
    f = _spectral()
    x = torch.randn(6, 16, dtype=F64, requires_grad=True)
    y = z = torch.zeros_like(x)
    for _step in range(2):
        y = 0.6 * y + 0.4 * f(z, x)
        z = 0.6 * z + 0.4 * f(y, x)
    loss = z.square().sum() + y.square().sum()
    return [z, y, *torch.autograd.grad(loss, [x, *f.parameters()])]


ALONE: dict[str, Feature] = {
    "an input injection that f computes once": _loop_of_cached,
    "spectral_norm in training": _spectral_loop,
    "store_last": lambda _: found("backprop"),
}
"""What a row is held to that one adjoint alone can do."""


class Energy(nn.Module):
    """A step down an energy."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Sequential(nn.Linear(16, 8, dtype=F64), nn.Softplus())

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        with torch.enable_grad():
            if not z.requires_grad:
                z = z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.e(z + x).sum(), z, create_graph=True)
        return torch.tanh(z - slope)


@feature("energy model (autograd.grad in f)")
def _energy(adjoint: str) -> list[Tensor]:
    return found(adjoint, Energy())


@feature("complex arguments")
def _complex(adjoint: str) -> list[Tensor]:
    w, c = (torch.randn(16, dtype=torch.complex128, requires_grad=True) for _ in range(2))
    x = torch.randn(6, 16, dtype=F64)

    def f(z: Tensor, x: Tensor, w: Tensor, c: Tensor) -> Tensor:
        return torch.tanh((z * w + c).real + (x * c).imag)

    z = solve(f, x * 0, x, w, c, max_steps=2, beta=0.4, adjoint=adjoint).z  # type: ignore[arg-type]
    grads = torch.autograd.grad(z.square().sum(), [w, c])
    return [z, *map(torch.view_as_real, grads)]


@feature("sparse argument")
def _sparse(adjoint: str) -> list[Tensor]:
    a = torch.rand(6, 6, dtype=F64).relu().sub(0.5).relu().to_sparse().requires_grad_()
    x = torch.randn(6, 16, dtype=F64, requires_grad=True)
    options: dict[str, Any] = {"max_steps": 2, "beta": 0.4, "adjoint": adjoint}
    z = solve(lambda z, x, a: torch.tanh(a @ z + x), torch.zeros_like(x), x, a, **options).z
    of_x, of_a = torch.autograd.grad(z.square().sum(), [x, a])
    return [z, of_x, of_a.to_dense()]


@feature("f closes over a leaf")
def _leaf(adjoint: str) -> list[Tensor]:
    w = torch.randn(16, dtype=F64, requires_grad=True)
    return found(adjoint, lambda z, x: torch.tanh(z * w + x), wrt=(w,))


@feature("f closes over a computed tensor")
def _computed(adjoint: str) -> list[Tensor]:
    w = torch.randn(16, dtype=F64, requires_grad=True)
    twice = 2 * w
    return found(adjoint, lambda z, x: torch.tanh(z * twice + x), wrt=(w,))


@feature("no_grad")
def _no_grad(adjoint: str) -> list[Tensor]:
    f, x = MLP(dtype=F64), torch.randn(6, 16, dtype=F64)
    with torch.no_grad():
        solution = solve(f, x * 0, x, state=F64, adjoint=adjoint)  # type: ignore[arg-type]
    assert not solution.z.requires_grad
    return [solution.z, solution.y]


@feature("retain_graph")
def _retained(adjoint: str) -> list[Tensor]:
    f, x = MLP(dtype=F64), torch.randn(6, 16, dtype=F64)
    z = solve(f, x * 0, x, max_steps=2, adjoint=adjoint).z  # type: ignore[arg-type]
    parameters = list(f.parameters())
    first = torch.autograd.grad(z.sum(), parameters, retain_graph=True)
    return [*first, *torch.autograd.grad(z.square().sum(), parameters)]


def _second(dtype: torch.dtype, state: Any) -> Feature:
    def run(adjoint: str) -> list[Tensor]:
        f, x = MLP(dtype=dtype), torch.randn(6, 16, dtype=dtype, requires_grad=True)
        options: dict[str, Any] = {"max_steps": 2, "beta": 0.4, "state": state}
        z = solve(f, x * 0, x, adjoint=adjoint, **options).z  # type: ignore[arg-type]
        (first,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
        return list(torch.autograd.grad(first.square().sum(), [x, *f.parameters()]))

    return run


FEATURES |= {
    "second derivative, float state": _second(F64, F64),
    "second derivative, exact state": _second(F32, "exact"),
}


@feature("batched gradients")
def _batched(adjoint: str) -> list[Tensor]:
    f, x = MLP(dtype=F64), torch.randn(2, 16, dtype=F64)

    def run(x: Tensor) -> Tensor:
        return solve(f, x * 0, x, max_steps=2, beta=0.4, adjoint=adjoint).z  # type: ignore[arg-type]

    rows: Any = torch.autograd.functional.jacobian(run, x, vectorize=True)
    return [rows]


@feature("non-reentrant checkpoint around the solve")
def _inside_checkpoint(adjoint: str) -> list[Tensor]:
    f, x = MLP(p=0.3, dtype=F64), torch.randn(6, 16, dtype=F64, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        return solve(f, x * 0, x, max_steps=2, beta=0.4, adjoint=adjoint).z  # type: ignore[arg-type]

    z = checkpoint(run, x, use_reentrant=False)
    return [z, *torch.autograd.grad(z.square().sum(), [x, *f.parameters()])]


@feature("FlopCounterMode")
def _counted(adjoint: str) -> list[Tensor]:
    f, x = MLP(dtype=F64), torch.randn(6, 16, dtype=F64, requires_grad=True)
    with FlopCounterMode(display=False) as mode:
        z = solve(f, x * 0, x, max_steps=2, beta=0.4, adjoint=adjoint).z  # type: ignore[arg-type]
        forward = mode.get_total_flops()
        z.square().sum().backward()
    assert mode.get_total_flops() >= 3 * forward > 0
    return [z, *(t.grad for t in (x, *f.parameters()) if t.grad is not None)]


def _transformed(transform: Callable[[Any, Tensor, Tensor], Any]) -> Feature:
    def run(adjoint: str) -> list[Tensor]:
        w, x = torch.randn(4, 4, dtype=F64), torch.randn(4, 4, dtype=F64)

        def loss(w: Tensor, x: Tensor) -> Tensor:
            options: dict[str, Any] = {"max_steps": 2, "beta": 0.4, "adjoint": adjoint}
            z = solve(lambda z, w, x: torch.tanh(z @ w + x), x * 0, w, x, **options).z
            return z.square().sum()

        return [transform(loss, w, x)]

    return run


FEATURES |= {
    "torch.func.grad": _transformed(lambda loss, w, x: grad(loss)(w, x)),
    "torch.func.vmap": _transformed(lambda loss, w, x: vmap(loss, (None, 0))(w, x)),
    "torch.func.jvp": _transformed(lambda loss, w, x: jvp(loss, (w, x), (x, w))[1]),
    "torch.func.hessian": _transformed(lambda loss, w, x: hessian(loss)(w, x)),
}


@feature("compiled f")
def _compiled(adjoint: str) -> list[Tensor]:
    f = MLP(dtype=F64)
    f.compile(backend="aot_eager")
    return found(adjoint, f)


@feature("fullgraph")
def _whole(adjoint: str) -> list[Tensor]:
    f, x = MLP(dtype=F64), torch.randn(6, 16, dtype=F64, requires_grad=True)
    rng = "none" if adjoint == "functional" else "auto"
    layer = RevDEQ(f, max_steps=2, beta=0.4, state=F64, adjoint=adjoint, rng=rng)
    z = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    return [z, *torch.autograd.grad(z.square().sum(), [x, *f.parameters()])]


@feature("torch.export")
def _exported(adjoint: str) -> list[Tensor]:
    layer, x = (
        RevDEQ(MLP(dtype=F64), max_steps=2, beta=0.4, state=F64, adjoint=adjoint),
        torch.randn(6, 16),
    )
    x = x.double().requires_grad_()
    program: Any = torch.export.export(layer, (x,)).module()
    z = program(x)
    assert torch.equal(z, layer(x))
    return [z, *torch.autograd.grad(z.square().sum(), [x, *program.parameters()])]


@feature("meta device")
def _meta(adjoint: str) -> list[Tensor]:
    with torch.device("meta"):
        like = found(adjoint)
    return [torch.zeros(t.shape, dtype=t.dtype) for t in like]


# ---- how near two ways to compute them must be -----------------------------------------------

# A state comes back to within its roundings over 0.6^4: 2^3 of them, in each of 2^3 half steps at
# most. A derivative of f passes that on to a gradient, twice for a second one: 2^4 more.
ROUNDINGS = 2.0**10
BOUND = ROUNDINGS * torch.finfo(F64).eps
BOUNDS: dict[str, float] = {
    "exact state": 0.0,
    "beta that learns, exact state": 0.0,
    "float32 state": ROUNDINGS * torch.finfo(F32).eps,
    # So many roundings of bfloat16 would bound nothing. Twice what ``solve`` lets a state be off.
    "bfloat16 state": 2.0**-3,
    "autocast": 2.0**-3,
}

# ---- in a CUDA graph -----------------------------------------------------------------------------

GRAPHED: dict[str, dict[str, Any]] = {
    "has_aux": {"has_aux": True},
    "residual_mask": {},
    "save_at": {"save_at": [1, 2]},
    "backward_steps": {"backward_steps": 2},
    "store_last": {"store_last": 3},
    "learned beta": {},
    "autocast": {},
    "compiled f": {},
}
"""The options whose cells only a GPU can test: ``test_cuda.py`` does."""
