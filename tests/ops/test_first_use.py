"""The check of a GPU kernel on first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from revdeq_kernels import exact_numbers, reference
from revdeq_kernels.core import backends, first_use
from revdeq_kernels.core.op import OPS as REGISTERED
from revdeq_kernels.core.op import Op
from revdeq_kernels.core.samples import (
    NUMEL,
    WHOLE,
    Kind,
    kinds_of,
)
from tests.ops.arguments import (
    NAMESPACES,
    OPS,
    WRITTEN,
    as_called,
    call,
    good_arguments,
    tensors,
)
from tests.two_gpus import FIRST as GPU
from tests.two_gpus import SECOND, TwoGpus

CPU, F32 = torch.device("cpu"), torch.float32

every_op = pytest.mark.parametrize("op", OPS)


# ---- the comparison --------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@every_op
def test_right_kernels_pass(op: str, backend: str) -> None:
    first_use.compare(
        backend, REGISTERED[op], CPU, lambda *a, **k: REGISTERED[op].run(backend, *a, **k)
    )


def outputs(op: str) -> list[str]:
    return sorted(WRITTEN[op]) or ["result"]


def flipping(op: str, output: str, nth: int, place: int) -> Callable[..., Tensor | None]:
    """The reference's op, one bit of one element of one output flipped in call `nth`."""
    count = iter(range(10**6))

    def run(*args: Any, **keywords: Any) -> Tensor | None:
        result = getattr(reference, op)(*args, **keywords)
        if next(count) == nth:
            named = dict(zip(signature(op), args, strict=False)) | keywords | {"result": result}
            flip(named[output], place)
        return result

    return run


def signature(op: str) -> list[str]:
    """The names of the positional arguments."""
    return [a.name for a in REGISTERED[op].arguments if not a.optional]


def flip(t: Tensor, place: int) -> None:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
    t.view(integers)[min(place, t.numel() - 1)] ^= 1


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("op", "output"), [(op, output) for op in OPS for output in outputs(op)])
def test_one_wrong_bit_is_found(op: str, output: str, last: bool) -> None:
    """In any output, in the first sample or the last, at the first element or the last."""
    nth = len(list(first_use.samples(REGISTERED[op]))) - 1 if last else 0
    wrong = flipping(op, output, nth, place=10**9 if last else 0)
    with pytest.raises(RuntimeError) as caught:
        first_use.compare("triton", REGISTERED[op], CPU, wrong)
    message = str(caught.value)
    assert message.startswith(f"{op}: the triton kernel on cpu differs from the reference (dtypes ")
    assert "must not be used" in message
    assert "revdeq_kernels.backend('reference')" in message


def test_a_wrong_sign_of_zero_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(state: Tensor, *args: Any, **keywords: Any) -> None:
        reference.update_(state, *args, **keywords)
        state.add_(0.0)  # turns -0 into +0

    sample = [torch.tensor([-0.0]), torch.tensor([-0.0]), 0.5], {"cast": torch.zeros(1)}
    monkeypatch.setattr(first_use, "samples", lambda op: [sample])
    with pytest.raises(RuntimeError, match="differs"):
        first_use.compare("triton", REGISTERED["update_"], CPU, wrong)


@every_op
def test_samples_have_every_dtype_and_form(op: str) -> None:
    seen = list(first_use.samples(REGISTERED[op]))
    assert len(seen) >= 3
    for args, keywords in seen:
        given = dict(zip(signature(op), args, strict=False)) | keywords
        assert given.keys() >= good_arguments(op).keys() - {"dtype"}
        assert all(t.isfinite().all() for t in tensors(given).values())
    if "exact" in op:
        contractions = [
            exact_numbers.contraction(args[signature(op).index("beta")]) for args, _ in seen
        ]
        assert {c.q % 2**30 == 0 for c in contractions} == {True, False}
        assert {c.base & (c.base - 1) == 0 for c in contractions} == {True, False}
        assert {c.sign for c in contractions} == {1, -1}


# ---- when it runs ----------------------------------------------------------------------------


def require(backend: str, op: str, device: torch.device, **options: Any) -> None:
    """Ask as a call of the op does."""
    args, keywords = as_called(op, good_arguments(op, **options))
    first_use.require(backend, REGISTERED[op], device, args, keywords)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch, two_gpus: TwoGpus) -> list[tuple[str, str, Any]]:
    """Grows with each comparison; no GPU is asked for anything."""
    seen: list[tuple[str, str, Any]] = []
    monkeypatch.setattr(first_use, "_passed", set())
    monkeypatch.setattr(first_use, "_passed_kinds", {})
    monkeypatch.setattr(first_use, "VALIDATED", {})
    monkeypatch.setattr(first_use, "architecture", lambda device: "sm_90")

    def compare(backend: str, op: Op, device: torch.device, run: Any, given: Any) -> None:
        seen.append((backend, op.label, device.index))

    monkeypatch.setattr(first_use, "compare", compare)
    return seen


def test_it_runs_once_for_each_backend_op_and_device(compared: list[Any]) -> None:
    uses = [
        ("cuda", "update_", GPU),
        ("triton", "update_", GPU),
        ("cuda", "invert_", GPU),
        ("cuda", "update_", SECOND),
        ("triton", "update_", SECOND),
    ]
    for _ in range(3):
        for backend, op, device in uses:
            require(backend, op, device)
    assert compared == [(backend, op, device.index) for backend, op, device in uses]


def test_a_compiled_kernel_is_tried_with_all_kinds_at_once_and_one_of_triton_with_its_own(
    compared: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[set[Any]] = []

    def compare(backend: str, op: Op, device: torch.device, run: Any, given: Any) -> None:
        tried.append({kind for args, kw in given for kind in kinds_of(op, tuple(args), kw)})

    monkeypatch.setattr(first_use, "compare", compare)
    for dtype in (F32, torch.bfloat16, F32):
        for shape in ((5, 7), (4, 8), (5, 9)):
            x = torch.zeros(shape, dtype=dtype)
            for backend in ("cuda", "triton"):
                first_use.require(backend, REGISTERED["update_"], GPU, (x, x.clone(), 0.5), {})
    of_cuda, *of_triton = tried
    assert len(of_cuda) == 16
    aligned, both = (True, True), (F32, torch.bfloat16)
    kinds = [Kind((d, d), aligned, size, ()) for d in both for size in (NUMEL, WHOLE)]
    assert of_triton == [{kind} for kind in kinds]


def test_it_does_not_run_on_the_cpu_or_for_the_reference(compared: list[Any]) -> None:
    require("cpu", "update_", CPU)
    require("triton", "update_", CPU)
    require("reference", "update_", GPU)
    assert compared == []
    require("triton", "update_", GPU)
    require("cuda", "update_", GPU)
    assert len(compared) == 2


def test_validated_kernels_are_not_compared(
    compared: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    validated = {("cuda", "sm_90"): frozenset({"update_"}), ("cuda", "sm_80"): frozenset(OPS)}
    validated |= {("triton", "sm_90"): frozenset({"invert_"})}
    monkeypatch.setattr(first_use, "VALIDATED", validated)
    for backend in ("cuda", "triton"):
        for op in ("update_", "invert_"):
            require(backend, op, GPU)
    assert compared == [("cuda", "invert_", 0), ("triton", "update_", 0)]


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_kernel_that_failed_is_compared_again(
    backend: str, compared: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        compared.append("failed")
        raise RuntimeError("differs")

    monkeypatch.setattr(first_use, "compare", fail)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="differs"):
            require(backend, "update_", GPU)
    assert compared == ["failed", "failed"]


@pytest.mark.parametrize("captured", [0, 1])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_first_use_during_graph_capture_is_refused(
    backend: str, captured: int, compared: list[Any], two_gpus: TwoGpus
) -> None:
    """Of the device of the tensors, or of the current one, whose capture the check would break."""
    two_gpus.captured = {captured}
    with pytest.raises(RuntimeError, match=r"update_: .* call it once before the capture"):
        require(backend, "update_", SECOND)
    assert compared == []
    two_gpus.captured = set()
    require(backend, "update_", SECOND)
    two_gpus.captured = {captured}
    require(backend, "update_", SECOND)
    assert compared == [(backend, "update_", 1)]


def test_a_kind_that_was_not_checked_is_refused_in_a_capture_and_others_are_not(
    compared: list[Any], two_gpus: TwoGpus
) -> None:
    require("triton", "update_", GPU)
    two_gpus.captured = {0}
    require("triton", "update_", GPU, shape=(3, 3))  # of the same kind
    with pytest.raises(RuntimeError, match=r"with such arguments, .* while a CUDA graph is capt"):
        require("triton", "update_", GPU, shape=(4, 4))
    assert len(compared) == 1


def test_arguments_that_are_no_good_are_refused_in_words_and_not_tried(
    compared: list[Any],
) -> None:
    x = torch.zeros(3)
    for _ in range(2):
        for args in ((x, "f", 0.5), (x, torch.zeros(4), 0.5), (x, x.to(torch.complex64), 0.5)):
            with pytest.raises((TypeError, ValueError), match=r"^update_: f: expected"):
                first_use.require("triton", REGISTERED["update_"], GPU, args, {})
        require("triton", "update_", GPU)
    assert len(compared) == 1


@pytest.mark.parametrize("op", ["update_", "update_.list"])
def test_an_optional_argument_that_is_none_is_one_that_was_left_out(
    op: str, compared: list[Any]
) -> None:
    args, _ = as_called(op, good_arguments(op, optional=False))
    for kw in ({}, {"cast": None}):
        first_use.require("triton", REGISTERED[op], GPU, args, kw)
        assert len(compared) == len(kinds_of(REGISTERED[op], args, {}))


def test_an_argument_that_torch_leaves_out_is_no_kind_of_its_own(compared: list[Any]) -> None:
    """As torch.ops calls an op with its defaults."""
    x = torch.zeros(3, dtype=torch.int32)
    first_use.require("triton", REGISTERED["dequantize"], GPU, (x, 16), {})
    first_use.require("triton", REGISTERED["dequantize"], GPU, (x, 16), {})
    assert len(compared) == 1


@pytest.mark.parametrize("namespace", [None, *NAMESPACES.values()])
@every_op
def test_every_route_asks_before_the_kernel_runs(
    op: str, namespace: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def refuse(backend: str, op: Op, device: torch.device, args: Any, kw: Any) -> None:
        asked.append((backend, op.label))
        raise RuntimeError("not yet")

    monkeypatch.setattr(first_use, "require", refuse)
    monkeypatch.setattr(backends, "chosen", "cpu")  # the short cut of the default is for the CPU
    arguments = good_arguments(op)
    before = {name: t.clone() for name, t in tensors(arguments).items()}
    with pytest.raises(RuntimeError, match="not yet"):
        call(op, arguments, namespace)
    backend = {name: b for b, name in NAMESPACES.items()}.get(namespace or "", "cpu")
    assert asked == [(backend, op)]
    assert all(torch.equal(t, before[name]) for name, t in tensors(arguments).items())


def test_architecture_of_an_nvidia_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    assert first_use.architecture(GPU) == "sm_120"


def test_architecture_of_an_amd_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        gcnArchName = "gfx942:sramecc+:xnack-"  # noqa: N815

    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert first_use.architecture(GPU) == "gfx942"
