"""``trace`` and ``on_step`` under compilers, in transforms and with the classical cell."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from tests.solver.cell.linear_layers import cell, inputs, one_op
from tests.solver.cell.linear_layers import layer as cell_layer
from tests.solver.cells import MLP
from tests.solver.compile.compiling import Model, whole
from tests.solver.iteration.watched import F64, assert_same_bits, problem
from torch_revdeq import RevDEQ, solve

pytestmark = pytest.mark.filterwarnings(
    "ignore:Torchinductor does not support code generation:UserWarning"
)


def test_compiled_f() -> None:
    f, x, _ = problem("all steps")
    seen: list[int] = []
    plain, watched = {}, {"trace": True, "on_step": lambda n, r, z: seen.append(n)}
    found = []
    options: Any
    for options in (plain, watched):
        solution = solve(f, x * 0, x, compile=True, tol=0.01, max_steps=20, **options)
        assert solution.stats.route.startswith("compiled")
        grads = torch.autograd.grad(solution.z.square().sum(), [x, *f.parameters()])
        found.append([solution.z, *grads])
    assert_same_bits(*found)
    stats = solution.stats
    assert stats.residuals is not None and stats.residuals[-1] == stats.residual < 0.01
    assert seen == [*range(1, stats.steps + 1)]


@pytest.mark.parametrize("options", [{}, {"tol": 0.05, "check_every": 2}], ids=str)
def test_a_whole_graph_traces(options: dict[str, Any]) -> None:
    torch.compiler.reset()
    x = torch.randn(6, 16)
    model = Model(max_steps=9, trace=True, **options)
    eager = model(x)
    want = model.equilibrium.stats.residuals
    compiled = whole(model)
    for _ in range(2):
        assert torch.equal(compiled(x), eager)
        assert torch.equal(model.equilibrium.stats.residuals, want)


def test_a_graph_breaks_at_a_function() -> None:
    """Its effects would not be seen in the graph: here the length of a list."""
    torch.compiler.reset()
    seen: list[float] = []

    def note(step: int, residual: Tensor, z: Tensor) -> None:
        seen.append(float(residual))

    model = Model(on_step=note)

    def called(x: Tensor) -> Tensor:
        return model(x) * len(seen)

    x = torch.randn(6, 16)
    want = called(x)
    seen.clear()
    assert torch.equal(torch.compile(called, backend="aot_eager")(x), want)
    torch.compiler.reset()
    with pytest.raises(Exception, match=r"expected no on_step in torch.compile\(fullgraph=True\)"):
        whole(model)(x)


@pytest.mark.parametrize("adjoint", ["functional", "backprop"])
def test_inside_a_transform(adjoint: Any) -> None:
    """The gradients are the same; a function is refused."""
    x, w = torch.randn(4, 4, dtype=F64), torch.randn(4, 4, dtype=F64)

    def loss(w: Tensor, x: Tensor, **options: Any) -> Tensor:
        f = lambda z, x, w: torch.tanh(z @ w + x)  # noqa: E731
        return solve(f, torch.zeros_like(x), x, w, adjoint=adjoint, **options).z.square().sum()

    transforms: list[Callable[..., Any]] = [
        lambda f: grad(f)(w, x),
        lambda f: vmap(f, (None, 0))(w, x),
        lambda f: jvp(f, (w, x), (x, w))[1],
    ]
    for transform in transforms:
        assert torch.equal(transform(partial(loss, trace=True)), transform(loss))
        with pytest.raises(RuntimeError, match="on_step: expected None inside a transform"):
            transform(partial(loss, on_step=print))


def test_an_exported_program_has_no_trace_and_calls_nothing() -> None:
    x = torch.randn(6, 16)
    layer = RevDEQ(MLP(), trace=True)
    program: Any = torch.export.export(layer, (x,)).module()
    assert torch.equal(program(x), layer(x))
    with torch.device("meta"):
        assert solve(torch.tanh, torch.zeros(3), trace=True).stats.residuals is None
    for act in (
        lambda: solve(torch.tanh, torch.zeros(3, device="meta"), on_step=print),
        lambda: torch.export.export(RevDEQ(MLP(), on_step=print), (x,)),
    ):
        with pytest.raises(Exception, match=r"on_step: expected None in torch\.export"):
            act()


@one_op
def test_the_classical_cell_goes_to_the_solver(implementation: str) -> None:
    x = inputs()
    options: dict[str, Any]
    for options in ({"trace": True}, {"on_step": lambda *_: None}):
        (name,) = options
        with pytest.raises(ValueError, match=f"cannot take this solve: it supports only {name}="):
            cell_layer(implementation, **options)(x)
        made = RevDEQ(cell(), **options)
        made(x)
        assert made.stats is not None and made.stats.route.startswith("solver: ")
    plain = cell_layer("solver")
    assert torch.equal(made(x), plain(x))
