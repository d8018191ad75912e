"""torch.compile(fullgraph=True) of functions that use the ops returns the same bits as eager."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import revdeq_kernels as rk
from revdeq_kernels import reference
from revdeq_kernels.core.op import OPS as KNOWN
from tests.conftest import BACKENDS, random_state
from tests.ops.arguments import (
    CHANNELS,
    LISTS,
    NAMESPACES,
    OPS,
    STEPS,
    assert_same_outcome,
    call,
    copies,
    expected,
    good_arguments,
    outcome,
)
from tests.ops.device_checks import check_compiled_solve


@pytest.fixture(autouse=True)
def _no_graph_of_another_test() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function: Any, backend: Any = "aot_eager", dynamic: bool | None = None) -> Any:
    return torch.compile(function, fullgraph=True, backend=backend, dynamic=dynamic)


@pytest.mark.parametrize(
    ("backend", "namespace"), [(b, n) for b in BACKENDS for n in (None, NAMESPACES[b])]
)
@pytest.mark.parametrize("op", OPS)
def test_compiled_ops_give_the_bits_of_eager_ones(
    op: str, backend: str, namespace: str | None
) -> None:
    for optional in (True, False):
        arguments = good_arguments(op, optional=optional)
        want = expected(op, arguments)
        with rk.backend(backend):
            result = compiled(lambda a: call(op, a, namespace))(arguments)
        assert_same_outcome(outcome(arguments, result), want, op)


def test_a_compiled_function_follows_the_choice_of_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: Any, **keywords: Any) -> None:
        calls.append(args)
        update(*args, **keywords)

    update = reference.update_
    monkeypatch.setattr(KNOWN["update_"], "define", counted)
    step = compiled(lambda state, f: rk.update_(state, f.tanh(), 0.8) + 1)
    inputs = random_state((4,), torch.float32), random_state((4,), torch.float32, seed=1)
    results = []
    for chosen, count in (("cpu", 0), ("reference", 1), ("cpu", 1), ("reference", 2)):
        with rk.backend(chosen):
            results.append(step(inputs[0].clone(), inputs[1]))
        assert len(calls) == count, chosen
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("op", LISTS + CHANNELS)
def test_compiled_overloads_give_the_bits_of_eager_ones(op: str) -> None:
    arguments = good_arguments(op)
    want = expected(op, arguments)
    result = compiled(lambda a: call(op, a))(arguments)
    assert_same_outcome(outcome(arguments, result), want, op)


@pytest.mark.parametrize("op", OPS)
def test_one_graph_serves_all_shapes(op: str) -> None:
    step = compiled(lambda a: call(op, a), dynamic=True)
    step(good_arguments(op, (5, 7)))
    with torch.compiler.set_stance("fail_on_recompile"):
        for shape in ((9, 3), (40, 41)):
            arguments = good_arguments(op, shape)
            want = expected(op, arguments)
            assert_same_outcome(outcome(arguments, step(arguments)), want, (op, shape))


@pytest.mark.parametrize("op", STEPS)
def test_bad_input_is_refused_while_tracing(op: str) -> None:
    arguments = good_arguments(op)
    arguments["f"] = arguments["f"][:1]
    before = copies(arguments)
    with pytest.raises(Exception, match=f"{op}: f: expected shape"):
        compiled(lambda a: call(op, a))(arguments)
    assert torch.equal(arguments["state"], before["state"])


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_solve_comes_back_to_where_it_began(backend: str) -> None:
    """Inductor's sine differs from that of eager torch in the last bit."""
    check_compiled_solve(lambda solve: compiled(solve, backend), "cpu", backend == "aot_eager")
