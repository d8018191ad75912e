"""What autograd users do around a solve: each of it works, or raises by name."""

from __future__ import annotations

import copy
from array import array
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from tests.solver.cells import MLP
from tests.solver.solving import REVERSIBLE, STEPS, assert_same, defined, gradients, inputs, run
from tests.tolerances import assert_within, unit_roundoff
from torch_revdeq import solve
from torch_revdeq.adjoints.vjp import engine_vjp


@pytest.mark.parametrize("how", REVERSIBLE)
def test_two_backward_passes(how) -> None:
    f, x = MLP(), inputs()
    loss = how(f, x).square().sum()
    first = torch.autograd.grad(loss, list(f.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(f.parameters()))
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, list(f.parameters()))


@pytest.mark.parametrize("how", REVERSIBLE)
def test_part_of_the_gradient(how) -> None:
    f, x = MLP(), inputs()
    (got,) = torch.autograd.grad(how(f, x).sum(), [f.a.weight])
    (want,) = torch.autograd.grad(defined(f, x).sum(), [f.a.weight])
    assert torch.equal(got, want)


@pytest.mark.parametrize("how", REVERSIBLE)
def test_the_result_may_be_changed_in_place(how) -> None:
    f, x = MLP(), inputs()
    assert_same(lambda s: s(f, x).mul_(2.0).add_(1.0), how, list(f.parameters()))


class Counting(TorchFunctionMode):
    """How often torch.autograd.grad is called."""

    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += func is torch.autograd.grad
        return func(*args, **(kwargs or {}))


def test_a_product_is_what_autograd_gives() -> None:
    """With the engine called by itself; but a mode, like a subclass of tensors, has its say."""
    a, b, unused = (torch.randn(3, requires_grad=True) for _ in range(3))
    wanted, seeds = [a, b, unused], [torch.randn(3), torch.randn(3)]
    roots = [torch.tanh(a * b), a.exp()]
    with Counting() as mode:
        want = torch.autograd.grad(roots, wanted, seeds, allow_unused=True, retain_graph=True)
        again = engine_vjp(roots, wanted, seeds, keep=True)
    assert mode.calls == 2
    got = engine_vjp(roots, wanted, seeds, keep=False)
    assert got[2] is again[2] is want[2] is None
    torch.testing.assert_close([got[:2], again[:2]], [want[:2], want[:2]], rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        engine_vjp(roots, wanted, seeds, keep=False)


@pytest.mark.parametrize("adjoint", ["reversible", "hooks"])
@pytest.mark.parametrize("state", ["exact", torch.float32], ids=str)
def test_a_change_in_place_is_noticed(adjoint: str, state: object) -> None:
    f, x = MLP(), inputs()
    names = {"a.weight": f.a.weight, "b.bias": f.b.bias, "": x}
    for name, change in names.items():
        z = run(adjoint, state=state)(f, x)
        with torch.no_grad():
            change.mul_(1.1)
        said = f"modified by an inplace operation: '{name}' in MLP" if name else "modified by an in"
        with pytest.raises(RuntimeError, match=said):
            z.sum().backward()


@pytest.mark.parametrize("how", REVERSIBLE)
def test_hooks_of_a_parameter_run_once_on_the_whole_gradient(how) -> None:
    f, x = MLP(), inputs()
    calls: list[str] = []
    f.a.weight.register_hook(lambda g: calls.append("tensor") or g * 2)
    f.a.weight.register_post_accumulate_grad_hook(lambda p: calls.append("accumulated"))
    plain = copy.deepcopy(f)
    how(f, x).square().sum().backward()
    assert calls == ["tensor", "accumulated"]
    plain.a.weight._backward_hooks = None
    defined(plain, x).square().sum().backward()
    assert f.a.weight.grad is not None and plain.a.weight.grad is not None
    assert torch.equal(f.a.weight.grad, 2 * plain.a.weight.grad)
    assert len(f.a.weight._backward_hooks) == 1  # type: ignore[arg-type]


def test_hooks_of_a_module_run_in_every_half_step() -> None:
    f, x = MLP(), inputs()
    calls: list[int] = []
    f.a.register_full_backward_hook(lambda *_: calls.append(1))
    run("reversible")(f, x).sum().backward()
    assert len(calls) == 2 * STEPS


def test_f_is_evaluated_twice_in_a_step_and_twice_again_on_the_way_back() -> None:
    f, x = MLP(), inputs()
    calls = array("b")  # a list that f holds would be put back
    f.register_forward_pre_hook(lambda *_: calls.append(True))
    for state in ("exact", torch.float32):
        for adjoint in ("reversible", "hooks"):
            del calls[:]
            z = run(adjoint, state=state)(f, x)
            assert len(calls) == 2 * STEPS
            z.sum().backward()
            assert len(calls) == 4 * STEPS


@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "checkpoint"])
def test_frozen_or_unfrozen_after_the_forward_pass(adjoint: str) -> None:
    f, x = MLP(), inputs()
    f.a.weight.requires_grad_(False)
    z = run(adjoint)(f, x)
    f.a.weight.requires_grad_(True)
    f.b.weight.requires_grad_(False)
    if adjoint != "reversible":
        with pytest.raises(RuntimeError, match="requires_grad of f's parameters"):
            z.sum().backward()
        return
    z.sum().backward()
    assert f.a.weight.grad is None and f.b.weight.grad is None
    assert f.a.bias.grad is not None


@pytest.mark.parametrize("how", REVERSIBLE)
def test_anomaly_mode_and_deterministic_mode(how) -> None:
    f, x = MLP(), inputs()
    with (
        pytest.warns(UserWarning, match="Anomaly"),
        torch.autograd.detect_anomaly(check_nan=True),
    ):
        assert_same(lambda s: s(f, x), how, list(f.parameters()))
    torch.use_deterministic_algorithms(True)
    try:
        assert_same(lambda s: s(f, x), how, list(f.parameters()))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("how", REVERSIBLE)
@pytest.mark.parametrize("reentrant", [False, True])
def test_inside_a_checkpoint(how, reentrant: bool) -> None:
    f, x = MLP(), inputs()

    def use(s: Callable[..., Tensor]) -> Tensor:
        out = checkpoint(
            lambda x: s(f, torch.zeros_like(x), torch.sin(x)), x, use_reentrant=reentrant
        )
        assert isinstance(out, Tensor)
        return out

    assert_same(use, how, [x, *f.parameters()])


@pytest.mark.parametrize("how", REVERSIBLE)
def test_a_checkpoint_inside_f(how) -> None:
    f, x = MLP(), inputs()
    inner = lambda z: checkpoint(f, z, use_reentrant=False)  # noqa: E731
    assert_same(lambda s: s(inner, x), how, [x, *f.parameters()])


def test_a_reentrant_checkpoint_inside_f_raises() -> None:
    f, x = MLP(), inputs()
    z = solve(lambda z: checkpoint(f, z, use_reentrant=True), x).z
    with pytest.raises(RuntimeError, match="use_reentrant"):
        z.sum().backward()


@pytest.mark.parametrize("how", REVERSIBLE)
def test_two_solves_of_one_module_and_one_inside_another(how) -> None:
    f, outer, x = MLP(), nn.Linear(16, 16), inputs()
    wrt = [x, *f.parameters(), *outer.parameters()]
    for use in (
        lambda s: s(f, torch.sin(s(f, x))),
        lambda s: s(lambda z: torch.tanh(outer(s(f, z))), x),
    ):
        # The sums of both solves are grouped otherwise: in float32, 2 STEPS parts of each solve, of
        # which one inside another has as many for each half step.
        bound = (2 * STEPS) ** 2 * unit_roundoff(torch.float32)
        assert_within(gradients(use, how, wrt), gradients(use, defined, wrt), bound)


def test_saved_tensor_hooks_of_the_caller() -> None:
    f, x = MLP(), inputs()
    want = gradients(lambda s: s(f, x), defined, [x])
    with torch.autograd.graph.save_on_cpu():
        z = run("reversible")(f, x)
    x.grad = None
    z.square().sum().backward()
    assert torch.equal(x.grad, want[0])  # type: ignore[arg-type]


def test_a_closed_over_tensor_changed_in_place_is_noticed() -> None:
    """One that is no leaf, and stays within the tolerance of the self check."""
    f, x = MLP(), inputs()
    embedded = torch.sin(x)
    z = run("hooks", state=torch.float32, check=1e9)(lambda z: f(z) * embedded, torch.zeros(6, 16))
    embedded.mul_(1.01)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()
