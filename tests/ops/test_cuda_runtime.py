"""The ops with CUDA streams, graphs, devices and torch.compile; their first-use check."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import revdeq_kernels as rk
from revdeq_kernels.core import backends, first_use
from revdeq_kernels.core.op import OPS as KNOWN
from revdeq_kernels.core.op import Op
from tests.ops.arguments import (
    EXACT_OPS,
    NAMESPACES,
    OPS,
    OVERLOADS,
    STEPS,
    as_called,
    assert_same_outcome,
    call,
    copies,
    expected,
    good_arguments,
    lead_of,
    outcome,
    overload_of,
    owner_of,
    tensors,
    with_tensors,
    written_by,
)
from tests.ops.device_checks import GPU, GPU_BACKENDS, check, check_compiled_solve, on_gpus, placed

pytestmark = on_gpus

SHAPE = (100_003,)
GPU_NAMESPACES = {"cuda": "revdeq", "triton": NAMESPACES["triton"]}

every_backend = pytest.mark.parametrize("backend", GPU_BACKENDS)
every_op = pytest.mark.parametrize("op", OVERLOADS)


def warm_up(op: str, arguments: dict[str, Any], backend: str) -> None:
    """Compile the kernel and pass its check at first use, on tensors of no importance."""
    with rk.backend(backend):
        call(op, copies(arguments))
    torch.cuda.synchronize()


def test_the_default_backend() -> None:
    assert backends.select("cuda") == GPU_BACKENDS[0]
    assert set(rk.available_backends("cuda")) == {*GPU_BACKENDS, "reference"}


@every_backend
@every_op
def test_a_stream_of_its_own(op: str, backend: str) -> None:
    """The op waits for what stands before it on the current stream, and for nothing else."""
    arguments = good_arguments(op, SHAPE)
    values = placed(arguments, GPU)
    mine = placed(arguments, GPU)
    warm_up(op, mine, backend)
    for t in tensors(mine).values():
        t.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), rk.backend(backend):
        torch.cuda._sleep(200_000_000)  # a tenth of a second: another stream would be too early
        for name, t in tensors(mine).items():
            t.copy_(tensors(values)[name])
        result = call(op, mine)
    stream.synchronize()
    assert_same_outcome(outcome(mine, result), expected(op, arguments), (op, backend))


@every_backend
@every_op
def test_a_captured_graph(op: str, backend: str) -> None:
    first = good_arguments(op, SHAPE)
    second = with_tensors(first, lambda _, t: t.flip(0))
    mine = placed(first, GPU)
    warm_up(op, mine, backend)
    graph = torch.cuda.CUDAGraph()
    with rk.backend(backend), torch.cuda.graph(graph):
        result = call(op, mine)
    for arguments in (first, second, first):
        for name, t in tensors(mine).items():
            t.copy_(tensors(arguments)[name])
        graph.replay()
        torch.cuda.synchronize()
        assert_same_outcome(outcome(mine, result), expected(op, arguments), (op, backend))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@every_backend
@every_op
def test_a_device_that_is_not_the_current_one(op: str, backend: str) -> None:
    with torch.cuda.device(0):
        check(op, good_arguments(op, SHAPE), "cuda:1", backend)
        assert torch.cuda.current_device() == 0


ELSEWHERE = [
    (op, name) for op in OPS for name in tensors(good_arguments(op)) if name != lead_of(op)
]


@every_backend
@pytest.mark.parametrize(("op", "name"), ELSEWHERE)
def test_tensors_on_two_devices_are_refused(op: str, name: str, backend: str) -> None:
    arguments = placed(good_arguments(op), GPU)
    arguments[name] = arguments[name].cpu()
    before = {n: t.clone() for n, t in tensors(arguments).items()}
    like = owner_of(op, name)
    message = (
        f"{op}: {name}: expected cuda:0, the device of {like}, got cpu; "
        f"move it with {name}.to({like}.device)"
    )
    with rk.backend(backend), pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(op, arguments)
    if backend == "cuda":
        with pytest.raises(RuntimeError, match=f"^{re.escape(message)}"):
            call(op, arguments, "revdeq")
    assert all(torch.equal(t, before[n]) for n, t in tensors(arguments).items())


@pytest.mark.parametrize("op", STEPS)
def test_a_cpu_state_refuses_an_f_on_the_gpu(op: str) -> None:
    arguments = good_arguments(op)
    arguments["f"] = arguments["f"].to(GPU)
    before = arguments["state"].clone()
    with pytest.raises(
        ValueError, match=f"^{op}: f: expected cpu, the device of state, got cuda:0;"
    ):
        call(op, arguments)
    assert torch.equal(arguments["state"], before)


# ---- torch.library and torch.compile ---------------------------------------------------------


@every_backend
@pytest.mark.parametrize("optional", [True, False])
@every_op
def test_opcheck(op: str, optional: bool, backend: str) -> None:
    arguments = placed(good_arguments(op, (5, 7), optional=optional), GPU)
    overload = overload_of(op, GPU_NAMESPACES[backend])
    torch.library.opcheck(overload, *as_called(op, arguments))


@every_backend
def test_a_compiled_solve_comes_back_to_where_it_began(backend: str) -> None:
    torch._dynamo.reset()
    with rk.backend(backend):
        check_compiled_solve(lambda f: torch.compile(f, fullgraph=True), GPU, same_sine=False)
    torch._dynamo.reset()


@every_backend
@every_op
def test_versions_count_what_is_written(op: str, backend: str) -> None:
    for namespace in (None, GPU_NAMESPACES[backend]):
        arguments = placed(good_arguments(op), GPU)
        before = {name: t._version for name, t in tensors(arguments).items()}
        with rk.backend(backend):
            call(op, arguments, namespace)
        written = {name for name, t in tensors(arguments).items() if t._version > before[name]}
        assert written == written_by(op, arguments)


# ---- the check at first use ------------------------------------------------------------------


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Grows with each comparison, in a process that has made none and knows no validated kernel."""
    seen: list[tuple[str, str]] = []
    compare = first_use.compare

    def counted(
        backend: str, op: Op, device: torch.device, run: Callable[..., Any], given: Any
    ) -> None:
        seen.append((backend, op.label))
        compare(backend, op, device, run, given)

    monkeypatch.setattr(first_use, "_passed", set())
    monkeypatch.setattr(first_use, "_passed_kinds", {})
    monkeypatch.setattr(first_use, "VALIDATED", {})
    monkeypatch.setattr(first_use, "compare", counted)
    return seen


@every_backend
@pytest.mark.parametrize("route", ["public", "torch.ops"])
@every_op
def test_the_first_use_is_checked(
    op: str, route: str, backend: str, compared: list[tuple[str, str]]
) -> None:
    namespace = GPU_NAMESPACES[backend] if route == "torch.ops" else None
    kinds = 2 if backend == "triton" and op.endswith(".list") else 1  # one leaf has one element
    for _ in range(2):
        with rk.backend(backend):
            call(op, placed(good_arguments(op), GPU), namespace)
        assert compared == [(backend, op)] * kinds


@every_backend
@pytest.mark.parametrize("op", ["update_", *EXACT_OPS])
def test_a_wrong_kernel_is_stopped_at_its_first_use(
    op: str, backend: str, compared: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong in the samples' expectation: the reference is changed, not the kernel."""
    right = KNOWN[op].define

    def shifted(state: torch.Tensor, *args: Any, **keywords: Any) -> None:
        right(state, *args, **keywords)
        state.add_(1)

    monkeypatch.setattr(KNOWN[op], "define", shifted)
    mine = placed(good_arguments(op), GPU)
    before = mine["state"].clone()
    for _ in range(2):
        with (
            rk.backend(backend),
            pytest.raises(RuntimeError, match=f"^{op}: the {backend} kernel on cuda:0 differs"),
        ):
            call(op, mine)
    assert torch.equal(mine["state"], before)
    assert compared == [(backend, op)] * 2


@every_backend
def test_a_first_use_during_capture_is_refused(
    backend: str, compared: list[tuple[str, str]]
) -> None:
    mine = placed(good_arguments("update_"), GPU)
    graph = torch.cuda.CUDAGraph()
    with (
        pytest.raises(RuntimeError, match="call it once before the capture"),
        rk.backend(backend),
        torch.cuda.graph(graph),
    ):
        call("update_", mine)
    assert compared == []
    torch.cuda.synchronize()
    check("update_", good_arguments("update_"), GPU, backend)
