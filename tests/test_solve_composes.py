"""Every cell of docs/composes.md: what it says is so."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, hessian, jvp, vmap
from torch.utils import _pytree as pytree

import torch_revdeq
from cells import MLP
from torch_revdeq import RevDEQ, solve

pytestmark = [
    # Torch scripts its own decompositions on the first use of forward mode.
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
    # What Dynamo does.
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

F32, F64 = torch.float32, torch.float64
DOCUMENT = (Path(__file__).parent.parent / "docs/composes.md").read_text()


def cells(heading: str) -> Iterator[tuple[str, str, str]]:
    """Row, column and content of a table of the document."""
    section = DOCUMENT.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    columns = table[0][1:]
    for row, *contents in table[2:]:
        yield from ((row, c, content) for c, content in zip(columns, contents, strict=True))


ADJOINTS = list(cells("With which adjoint"))
OPTIONS = [cell for cell in cells("Options among each other") if cell[2]]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()


# ---- adjoints ------------------------------------------------------------------------------------

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


def seeded(run: Feature, adjoint: str) -> list[Tensor]:
    torch.manual_seed(0)
    return run(adjoint)


@pytest.mark.parametrize(
    ("row", "adjoint", "content"), ADJOINTS, ids=[f"{row}-{column}" for row, column, _ in ADJOINTS]
)
def test_adjoints(row: str, adjoint: str, content: str) -> None:
    if content == "refused":
        with pytest.raises((ValueError, TypeError, RuntimeError), match=EXPLAINS):
            seeded(FEATURES[row], adjoint)
        return
    assert content == "yes"
    others = [column for r, column, c in ADJOINTS if r == row and c == "yes" and column != adjoint]
    got = seeded(FEATURES[row], adjoint)
    want = seeded(FEATURES[row], others[0]) if others else seeded(ALONE[row], adjoint)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        distance = (a.double() - b.double()).norm()
        assert distance <= BOUNDS.get(row, BOUND) * b.double().norm()


EXPLAINS = "expected .*(choose|pass|put|give)|mutate a captured Tensor"
"""An error of ours says what to do; the other one is torch.func's."""

# A state comes back to within its roundings over 0.6^4: 2^3 of them, in each of 2^3 half steps at
# most. A derivative of f passes that on to a gradient, twice for a second one: 2^4 more.
ROUNDINGS = 2.0**10
BOUND = ROUNDINGS * torch.finfo(F64).eps
BOUNDS: dict[str, float] = {
    "exact state": 0.0,
    "beta that learns, exact state": 0.0,
    "float32 state": ROUNDINGS * torch.finfo(F32).eps,
    # So many roundings of bfloat16 would bound nothing; they do not all point one way.
    "bfloat16 state": 2.0**-3,
    "autocast": 2.0**-3,
}


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
    "spectral_norm in training": _spectral_loop,
    "store_last": lambda _: found("backprop"),
}
"""What a row is held to that one adjoint alone can do."""


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


# ---- options -------------------------------------------------------------------------------------

CHOICES: dict[str, dict[str, Any]] = {
    "tol": {"tol": 0.3, "max_steps": 4},
    "per_sample": {"per_sample": True, "tol": 0.3, "max_steps": 4},
    "save_at": {"save_at": [1, 2]},
    "backward_steps": {"backward_steps": 1},
    "store_last": {"store_last": 2},
    "random depth": {"max_steps": lambda: int(torch.randint(2, 4, ()))},
    "learned beta": {},
    "dropout": {},
    "autocast": {},
    "compiled f": {},
    "fullgraph": {},
    "CUDA graph": {},
}


def combined(names: tuple[str, str], *, defined: bool) -> list[Tensor]:
    """z, y, what was saved and all gradients, with two choices; or as they are defined."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"max_steps": 3, "state": "exact", "beta": 0.4}
    for name in names:
        options |= CHOICES[name]
    if defined:
        options |= {"adjoint": "backprop", "store_last": 0}
    f, x = MLP(p=0.3 if "dropout" in names else 0.0), torch.randn(6, 16, requires_grad=True)
    tensors = [x, *f.parameters()]
    if "learned beta" in names:
        options["beta"] = torch.tensor(0.4, requires_grad=True)
        tensors.append(options["beta"])
    if "compiled f" in names and not defined:
        f.compile(backend="aot_eager")

    def run(x: Tensor) -> list[Tensor]:
        solution = solve(f, torch.zeros_like(x), x, **options)
        return [solution.z, solution.y, *solution.saved]

    if "fullgraph" in names and not defined:
        run = torch.compile(run, backend="aot_eager", fullgraph=True)
    autocast = torch.autocast("cpu", torch.bfloat16) if "autocast" in names else nullcontext()
    torch.manual_seed(1)
    with autocast:
        outputs = run(x)
    loss = torch.stack([t.square().sum() for t in outputs]).sum()
    return [*outputs, *torch.autograd.grad(loss, tensors)]


@pytest.mark.parametrize(
    ("row", "column", "content"), OPTIONS, ids=[f"{row}-{column}" for row, column, _ in OPTIONS]
)
def test_options(row: str, column: str, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if content == "gpu":
        pytest.skip("only where there is one")
    if column == "CUDA graph":
        solver = sys.modules["torch_revdeq.solve"]  # the name is that of a function too
        monkeypatch.setattr(solver, "capturing", lambda device: True)
        monkeypatch.setitem(CHOICES, column, {"frac_bits": 18, "rng": "none"})
        if row == "dropout":  # it needs its random numbers
            monkeypatch.setitem(CHOICES, column, {"frac_bits": 18})
    if content == "refused":
        with pytest.raises(ValueError, match=EXPLAINS + "|cannot depend|the capture"):
            combined((row, column), defined=False)
        return
    assert content == "yes"
    got, want = (combined((row, column), defined=defined) for defined in (False, True))
    assert len(got) == len(want)
    assert all(map(torch.equal, got, want))


def test_every_choice_has_a_row_or_a_column() -> None:
    assert {row for row, *_ in ADJOINTS} == set(FEATURES)
    assert {name for row, column, _ in OPTIONS for name in (row, column)} == set(CHOICES)
    assert re.search(r"`fixed_point` \| one process", DOCUMENT)
    assert "fixed_point" in torch_revdeq.__all__
