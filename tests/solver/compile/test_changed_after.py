"""compile=True: what is done to f, and to torch.compile, after f was traced."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules
from torch.utils.checkpoint import checkpoint

from tests.solver.cells import MLP, TwoMaps
from torch_revdeq import solve


def compiled(f: Any, x: Tensor, choice: Any = True) -> tuple[str, list[Tensor]]:
    """The route, z, and the gradients of x and f's parameters."""
    solution = solve(f, torch.zeros_like(x), x, max_steps=3, beta=0.7, compile=choice)
    wrt = [x, *f.parameters()]
    found = torch.autograd.grad(solution.z.square().sum(), wrt, allow_unused=True)
    return solution.stats.route, [solution.z, *(g for g in found if g is not None)]


def assert_seen(f: Any, x: Tensor, choice: Any = True) -> str:
    """By the graphs it is what it is without them; the route."""
    route, got = compiled(f, x, choice)
    _, want = compiled(f, x, False)
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 2.0**-16 * b.norm()
    return route


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 16, requires_grad=True)


def _smaller(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return (0.3 * given[0], *given[1:])


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda m: m.register_forward_hook(lambda _, given, out: out.mul(0.3)),
    "pre": lambda m: m.register_forward_pre_hook(_smaller),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("place", ["", "a"])
def test_a_hook_that_comes_and_goes(kind: str, place: str, x: Tensor) -> None:
    f = MLP()
    assert_seen(f, x)
    hook = HOOKS[kind](f.get_submodule(place))
    assert assert_seen(f, x).startswith("compiled: ")
    hook.remove()
    assert assert_seen(f, x).startswith("compiled: ")


def test_a_backward_hook_that_comes(x: Tensor) -> None:
    f = MLP()
    assert_seen(f, x)
    f.a.register_full_backward_hook(lambda m, into, out: (2 * into[0],))
    assert assert_seen(f, x, "auto").startswith("solver: torch.compile cannot trace f")


@pytest.mark.parametrize("kind", ["forward_pre_hook", "forward_hook", "full_backward_hook"])
def test_hooks_of_all_modules_are_left_to_the_solver(kind: str, x: Tensor) -> None:
    f = MLP()
    assert_seen(f, x)
    hook = getattr(of_all_modules, f"register_module_{kind}")(lambda *_: None)
    try:
        assert assert_seen(f, x, "auto").startswith("solver: hooks of all modules are registered")
    finally:
        hook.remove()
    assert assert_seen(f, x).startswith("compiled: ")


@pytest.mark.slow
def test_parameters_that_are_tied_and_untied(x: Tensor) -> None:
    f = TwoMaps()
    assert_seen(f, x)
    f.of_x.weight = f.of_z.weight
    assert assert_seen(f, x).startswith("compiled: ")
    f.of_x.weight = nn.Parameter(0.5 * f.of_z.weight.detach())
    assert assert_seen(f, x).startswith("compiled: ")


@pytest.mark.parametrize("reentrant", [False, True])
def test_traced_inside_of_a_checkpoint(reentrant: bool, x: Tensor) -> None:
    f = MLP()

    def body(x: Tensor) -> Tensor:
        return solve(f, torch.zeros_like(x), x, max_steps=3, beta=0.7, compile=True).z

    z: Any = checkpoint(body, x, use_reentrant=reentrant)
    z.square().sum().backward()
    assert x.grad is not None and torch.equal(x.grad, compiled(f, x)[1][1])


class Dropping(MLP):
    p = 0.5

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        return nn.functional.dropout(super().forward(z, x), self.p, self.training)


@pytest.mark.slow
def test_a_refusal_is_looked_at_again_where_it_would_raise(x: Tensor) -> None:
    f = Dropping()
    with pytest.raises(ValueError, match="f draws random numbers"):
        compiled(f, x)
    f.p = 0.0
    assert compiled(f, x, "auto")[0].startswith("solver: f draws random numbers")  # remembered
    assert assert_seen(f, x).startswith("compiled: ")


class Counted(MLP):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.register_forward_hook(lambda *_: self.calls.append(1))


def test_torch_compile_switched_off_for_a_while(x: Tensor) -> None:
    f, counted = MLP(), Counted()
    says = "solver: torch.compile is switched off"
    with torch.compiler.set_stance("force_eager"):
        assert compiled(f, x, "auto")[0] == says
        solve(counted, torch.zeros_like(x), x, max_steps=3, compile="auto")
    assert len(counted.calls) == 6  # nothing was run besides the solve
    with torch._dynamo.config.patch(disable=True):
        assert compiled(f, x, "auto")[0] == says
    assert torch._dynamo.config.automatic_dynamic_shapes  # of what others compile
    assert compiled(f, x, "auto")[0].startswith("compiled: ")


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise NotImplementedError("no compiler here")

    from torch_revdeq.compile import graphs

    with monkeypatch.context() as patch:
        patch.setattr(graphs, "compile_fx_inner", failing)
        f, says = MLP(), "the compiler fails: NotImplementedError: no compiler here"
        with pytest.raises(ValueError, match=f"compile: expected .*{says}; pass compile='auto'"):
            compiled(f, x)
        assert compiled(f, x, "auto")[0] == f"solver: {says}"
    assert assert_seen(f, x).startswith("compiled: ")


@pytest.mark.slow
def test_threads_that_begin_at_the_same_time(x: Tensor) -> None:
    """Tracers exchange nn.Module.__call__, and left another in its place for good."""
    f, call = MLP(), nn.Module.__call__
    start, routes = threading.Barrier(3), []

    def body() -> None:
        start.wait()
        for width in (6, 7):  # the second shape is traced where others still compile the first
            own = torch.randn(width, 16, requires_grad=True)
            routes.append(solve(f, torch.zeros_like(own), own, compile="auto").stats.route)

    threads = [threading.Thread(target=body) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(routes) == 6 and all(route.startswith("compiled: ") for route in routes)
    assert nn.Module.__call__ is call


def test_a_leaf_without_a_gradient_is_left_to_the_solver(x: Tensor) -> None:
    f = MLP()

    def two(z: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        new = f(z[0] + z[1], x)
        return new, 0.5 * new.detach()

    solution = solve(two, (torch.zeros_like(x), torch.zeros_like(x)), x, compile="auto")
    assert solution.stats.route == (
        "solver: f returns a leaf without a gradient, such as a detached one"
    )


def test_graphs_go_with_f(x: Tensor) -> None:
    def count() -> int:
        gc.collect()
        return sum(type(o).__name__ == "_Traced" for o in gc.get_objects())

    before = count()
    for _ in range(2):
        solve(lambda z, x: torch.tanh(0.5 * z + x), torch.zeros_like(x), x, compile=True)
    assert count() == before


class Scaled(MLP):
    scale = 1.0

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        return self.scale * super().forward(z, x)


@pytest.mark.slow
def test_more_forms_than_dynamo_takes(x: Tensor) -> None:
    f, routes = Scaled(), []
    with torch._dynamo.config.patch(recompile_limit=2):
        for scale in (0.9, 0.8, 0.7):
            f.scale = scale
            routes.append(assert_seen(f, x, "auto"))
    assert routes[1].startswith("compiled: ")
    assert routes[2].startswith("solver: f, or what it reads, had more forms than torch._dynamo")
