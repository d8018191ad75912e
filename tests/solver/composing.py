"""Rows of docs/composes.md: a solve with each feature, with a given adjoint.

Rows on the surroundings of the solve are in surroundings.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.solver.cells import MLP, Energy, Normed
from tests.solver.solving import loop
from torch_revdeq import solve

F32, F64 = torch.float32, torch.float64

Feature = Callable[[str], list[Tensor]]
FEATURES: dict[str, Feature] = {}


def feature(name: str, rows: dict[str, Feature] = FEATURES) -> Callable[[Feature], Feature]:
    """A row: gradients and solutions with a given adjoint."""

    def note(function: Feature) -> Feature:
        rows[name] = function
        return function

    return note


def leaf(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def plain(tensor: Tensor) -> Tensor:
    """The tensor as a dense tensor of real numbers."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor.to_dense()


def differentiated(outputs: list[Tensor], *wrt: Any) -> list[Tensor]:
    """The outputs, and the gradients of a loss of all outputs."""
    tensors = [t for t in pytree.tree_leaves(wrt) if isinstance(t, Tensor) and t.requires_grad]
    losses = torch.stack([t.double().square().sum() for t in outputs])
    return [*outputs, *map(plain, torch.autograd.grad(losses.sum(), tensors))]


def solved(adjoint: str, f: Callable[..., Any], x: Tensor, *args: Any, **options: Any) -> Any:
    options = {"max_steps": 2, "beta": 0.4, "state": F64, "adjoint": adjoint, **options}
    return solve(f, options.pop("z0", torch.zeros_like(x)), x, *args, **options)


def found(
    adjoint: str,
    f: Callable[..., Any] | None = None,
    *args: Any,
    dtype: torch.dtype = F64,
    wrt: tuple[Tensor, ...] = (),
    **options: Any,
) -> list[Tensor]:
    """z, y, saved states, aux and all gradients of a solve of f, by default an MLP."""
    f, x = MLP(dtype=dtype) if f is None else f, leaf(6, 16, dtype=dtype)
    solution = solved(adjoint, f, x, *args, **{"state": dtype, **options})
    ends = (solution.z, solution.y, solution.saved, solution.aux)
    outputs = [t for t in pytree.tree_leaves(ends) if t is not None]
    parameters = list(f.parameters()) if isinstance(f, nn.Module) else []
    given = [options.get("y0"), options.get("beta"), args, wrt, parameters]
    return differentiated(outputs, x, given)


def of(make: Callable[[], Callable[..., Any]] = lambda: MLP(dtype=F64), **options: Any) -> Feature:
    return lambda adjoint: found(adjoint, make(), **options)


# ---- states and options --------------------------------------------------------------------------


def of_state(state: Any, dtype: torch.dtype) -> Feature:
    return lambda adjoint: found(adjoint, dtype=dtype, state=state)


def learned(dtype: torch.dtype, state: Any, shape: tuple[int, ...] = ()) -> Feature:
    def run(adjoint: str) -> list[Tensor]:
        beta = torch.full(shape, 0.4, dtype=dtype, requires_grad=not shape)
        return found(adjoint, dtype=dtype, state=state, beta=beta)

    return run


class Auxiliary(MLP):
    """An MLP that returns losses in addition to its state."""

    def forward(self, z: Tensor, x: Tensor | None = None) -> Any:
        new = super().forward(z, x)
        return new, {"penalty": new.square().mean(), "rows": (z * new).sum(1)}


FEATURES |= {
    "exact state": of_state("exact", F32),
    "float32 state": of_state(F32, F32),
    "float64 state": of_state(F64, F64),
    "bfloat16 state": of_state(torch.bfloat16, torch.bfloat16),
    "y0": lambda adjoint: found(adjoint, y0=leaf(6, 16)),
    "beta for each step": of(beta=[0.3, 0.5]),
    "beta that learns, exact state": learned(F32, "exact"),
    "beta that learns, float state": learned(F64, F64),
    "beta for each channel": learned(F64, F64, (16,)),
    "random depth": of(max_steps=lambda: int(torch.randint(2, 4, ()))),
    "tol": of(tol=0.3, max_steps=4),
    "per_sample": of(tol=0.3, per_sample=True, max_steps=4),
    "per_sample=2": of(tol=0.3, per_sample=2, max_steps=4),
    "residual_mask": of(tol=0.3, residual_mask=torch.arange(6) < 4, max_steps=4),
    "save_at": of(save_at=[1, 2]),
    "backward_steps": of(backward_steps=1),
    "store_last": of(store_last=1),
    "has_aux": of(lambda: Auxiliary(dtype=F64), has_aux=True),
}


@feature("trace")
def _trace(adjoint: str) -> list[Tensor]:
    f, x = MLP(dtype=F64), leaf(6, 16)
    solution = solved(adjoint, f, x, trace=True)
    return [solution.stats.residuals, *differentiated([solution.z], x, list(f.parameters()))]


@feature("on_step")
def _on_step(adjoint: str) -> list[Tensor]:
    f, x, kept = MLP(dtype=F64), leaf(6, 16), list[Tensor]()
    z = solved(adjoint, f, x, on_step=lambda step, residual, z: kept.extend((residual, z))).z
    return [*kept, *differentiated([z], x, list(f.parameters()))]


@feature("pytree as state")
def _pytree(adjoint: str) -> list[Tensor]:
    def f(z: dict[str, Tensor], x: Tensor, w: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(z["a"] * w + x)
        return {"a": h, "b": torch.tanh(z["b"] + h.mean(1))}

    z0 = {"a": torch.zeros(6, 16, dtype=F64), "b": torch.zeros(6, dtype=F64)}
    return found(adjoint, f, leaf(16), z0=z0)


@feature("pass_step")
def _pass_step(adjoint: str) -> list[Tensor]:
    def f(z: Tensor, x: Tensor, of_step: Tensor, step: int) -> Tensor:
        return torch.tanh(0.5 * z + x + of_step[step])

    return found(adjoint, f, leaf(2, 16), pass_step=True)


@feature("keyword arguments of f")
def _keywords(adjoint: str) -> list[Tensor]:
    def f(z: Tensor, x: Tensor, mlp: Any, *, scale: Tensor, parts: dict[str, Any]) -> Tensor:
        weights = (parts["w"], parts["b"])
        return torch.tanh(torch.nn.functional.linear(z * scale, *weights) + x * parts["by"])

    scale, b, w = leaf(16), leaf(16), leaf(16, 16)
    kwargs = {"scale": scale, "parts": {"w": 0.1 * w, "b": b, "by": 2}}
    return found(adjoint, f, MLP(dtype=F64), wrt=(scale, b, w), kwargs=kwargs)


# ---- what f is and does --------------------------------------------------------------------------


class Leaving(MLP):
    """An MLP that stores a loss as an attribute."""

    penalty: Tensor

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        new = super().forward(z, x)
        self.penalty = new.square().mean()
        return new


@feature("a loss left on f, not returned")
def _left(adjoint: str) -> list[Tensor]:
    f, x = Leaving(dtype=F64), leaf(6, 16)
    z = solved(adjoint, f, x).z
    return [z, *torch.autograd.grad(z.square().sum() + f.penalty, [x, *f.parameters()])]


class Caching(MLP):
    """An MLP that computes its input injection in its first evaluation, and keeps it."""

    once: Tensor | None = None

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        if self.once is None:
            self.once = self.b(self.a(x))
        return super().forward(z, self.once)


def _caching() -> MLP:
    return Caching(dtype=F64)


def _spectral() -> MLP:
    f = MLP(dtype=F64)
    nn.utils.parametrizations.spectral_norm(f.a)
    return f


def of_the_loop(make: Callable[[], MLP]) -> Feature:
    """The reference for a row that only one adjoint supports: the plain loop."""

    def run(_: str) -> list[Tensor]:
        f, x = make(), leaf(6, 16)
        ends = loop(f, torch.zeros_like(x), x, steps=2, beta=0.4)
        return differentiated([*ends], x, list(f.parameters()))

    return run


ALONE: dict[str, Feature] = {
    "an input injection that f computes once": of_the_loop(_caching),
    "spectral_norm in training": of_the_loop(_spectral),
    "store_last": of(),
}


@feature("autocast")
def _autocast(adjoint: str) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        return found(adjoint, dtype=F32)


@feature("BatchNorm in training")
def _batch_norm(adjoint: str) -> list[Tensor]:
    f = Normed(dtype=F64)
    return [*found(adjoint, f), *(b for b in f.buffers())]


def _compiled() -> MLP:
    f = MLP(dtype=F64)
    f.compile(backend="aot_eager")
    return f


FEATURES |= {
    "an input injection that f computes once": of(_caching),
    "dropout": of(lambda: MLP(p=0.3, dtype=F64)),
    "spectral_norm in training": of(_spectral),
    "energy model (autograd.grad in f)": of(lambda: Energy(dtype=F64)),
    "compiled f": of(_compiled),
}


@feature("complex arguments")
def _complex(adjoint: str) -> list[Tensor]:
    def f(z: Tensor, x: Tensor, w: Tensor, c: Tensor) -> Tensor:
        return torch.tanh((z * w + c).real + (x * c).imag)

    return found(adjoint, f, *(leaf(16, dtype=torch.complex128) for _ in range(2)))


@feature("sparse argument")
def _sparse(adjoint: str) -> list[Tensor]:
    a = torch.rand(6, 6, dtype=F64).relu().sub(0.5).relu().to_sparse().requires_grad_()
    return found(adjoint, lambda z, x, a: torch.tanh(a @ z + x), a)


@feature("f closes over a leaf")
def _leaf(adjoint: str) -> list[Tensor]:
    w = leaf(16)
    return found(adjoint, lambda z, x: torch.tanh(z * w + x), wrt=(w,))


@feature("f closes over a computed tensor")
def _computed(adjoint: str) -> list[Tensor]:
    w = leaf(16)
    twice = 2 * w
    return found(adjoint, lambda z, x: torch.tanh(z * twice + x), wrt=(w,))


# ---- how near two ways to compute them must be -----------------------------------------------

# A state is reconstructed to within its roundings over 0.6^4: at most 2^3, in each of 2^3 half
# steps. A derivative of f passes that on to a gradient, a second one does so twice: 2^4 more.
ROUNDINGS = 2.0**10
BOUND = ROUNDINGS * torch.finfo(F64).eps
BOUNDS: dict[str, float] = {
    "exact state": 0.0,
    "beta that learns, exact state": 0.0,
    "float32 state": ROUNDINGS * torch.finfo(F32).eps,
    # That many bfloat16 roundings would be no bound: twice the error that ``solve`` allows a state.
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
    "trace": {"trace": True},
    "learned beta": {},
    "autocast": {},
    "compiled f": {},
}
"""The options whose cells can only be tested on a GPU, by ``test_cuda.py``."""
