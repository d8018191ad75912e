"""What goes wrong leaves nothing behind: exceptions, threads, references."""

from __future__ import annotations

import gc
import threading
import weakref
from array import array

import pytest
import torch

from tests.solver.cells import MLP
from tests.solver.solving import STEPS, defined, inputs, run
from torch_revdeq import solve


@pytest.mark.parametrize("adjoint", ["reversible", "hooks"])
@pytest.mark.parametrize("call", [3, 2 * STEPS + 3], ids=["forward", "back"])
def test_an_exception_in_f(adjoint: str, call: int) -> None:
    f, x = MLP(p=0.2), inputs()
    counter = torch.zeros((), dtype=torch.int64)
    f.register_buffer("counter", counter)
    hook = f.a.weight.register_hook(lambda g: g)
    calls = array("b")  # a list that f holds would be put back

    def fail(*_: object) -> None:
        counter.add_(1)
        calls.append(1)
        if len(calls) == call:
            raise ValueError("boom")

    handle = f.register_forward_pre_hook(fail)
    z = None
    if call > 2 * STEPS:
        z = run(adjoint)(f, x)
    random, count = torch.get_rng_state(), counter.clone()
    with pytest.raises(ValueError, match="boom"):
        run(adjoint)(f, x) if z is None else z.sum().backward(retain_graph=True)
    if z is not None:
        assert torch.equal(random, torch.get_rng_state()) and torch.equal(counter, count)
    assert len(f.a.weight._backward_hooks) == 1  # type: ignore[arg-type]
    assert torch.is_grad_enabled() and f.a.weight.grad is None
    handle.remove()
    (run(adjoint)(f, x) if z is None else z).sum().backward()
    assert f.a.weight.grad is not None
    hook.remove()


def test_threads_share_a_module() -> None:
    f = MLP()
    xs = [torch.randn(6, 16) for _ in range(8)]
    want = [torch.autograd.grad(defined(f, x).square().sum(), list(f.parameters())) for x in xs]
    f.a.weight.register_hook(lambda g: g)
    failures: list[object] = []

    def work(i: int) -> None:
        try:
            for _ in range(5):
                z = run("reversible" if i % 2 else "hooks")(f, xs[i])
                got = torch.autograd.grad(z.square().sum(), list(f.parameters()))
                assert all(map(torch.equal, got, want[i]))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(f.a.weight._backward_hooks) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "backprop"])
@pytest.mark.parametrize("backward", [True, False])
def test_no_reference_cycles(adjoint: str, backward: bool) -> None:
    gc.collect()
    gc.disable()
    try:
        f, x = MLP(), inputs()
        solution = solve(f, x, adjoint=adjoint, max_steps=2)  # type: ignore[arg-type]
        if backward:
            solution.z.sum().backward()
        gone = [weakref.ref(f), weakref.ref(solution.z), weakref.ref(solution), weakref.ref(x)]
        del f, x, solution
        assert [ref() for ref in gone] == [None] * 4
    finally:
        gc.enable()


def test_nothing_is_kept_after_the_backward_pass() -> None:
    """The states and digits go when autograd lets go of what it saved, not when z does."""
    f, x = MLP(), inputs()
    solution = solve(f, x)
    node = solution.z.grad_fn
    saved = [weakref.ref(t.untyped_storage()) for t in node.saved_tensors if t.dtype == torch.uint8]
    del node
    assert saved and all(ref() is not None for ref in saved)
    solution.z.sum().backward()
    gc.collect()
    assert all(ref() is None for ref in saved)
