"""The harness of the ops: its counts, its statistics, its gate, its files."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import __main__ as command
from bench import arguments
from bench.core import gate, harness, providers, timing
from bench.core.case import Bind, Call, Case, Plan, Provider, Tensors
from bench.ops import half_step
from bench.ops import run as ops
from tests.bench.test_cases import TINY


def fake_case(*contenders: Provider, bytes_moved: int | None = 512) -> Case:
    """A case that doubles one float tensor, with providers of the test's choice."""
    return Case(
        benchmark="fake",
        op="double_",
        dtypes={"state": torch.float32},
        elements=64,
        bytes=bytes_moved,
        make=lambda elements: {"state": torch.rand(elements) + 1},
        providers=contenders,
    )


def doubling(tensors: Tensors) -> Call:
    return partial(tensors["state"].mul_, 2)


def provider(bind: Bind) -> Provider:
    return Provider("mine", "revdeq", bind, doubling)


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 1.0), (0.2, 1.8), (0.5, 3.0), (0.8, 4.2), (1.0, 5.0)]
)
def test_quantile(fraction: float, expected: float) -> None:
    assert timing.quantile([3.0, 1.0, 5.0, 2.0, 4.0], fraction) == pytest.approx(expected)
    assert timing.quantile([7.0], fraction) == 7.0


def test_quantile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        timing.quantile([], 0.5)


def test_samples_last_long_enough_and_are_taken_in_turn() -> None:
    order: list[str] = []

    lengths: list[float] = []

    def clock(calls: Sequence[Call], count: int) -> float:
        order.append(str(calls[0]()))
        lengths.append(count * 0.003)
        return count * 0.003

    contenders = [
        timing.Contender(provider(doubling), [partial(str, name)], count=40) for name in "ab"
    ]
    timing.race(contenders, clock, rounds=2, minimum=0.1, on_sample=lambda: None)
    assert order == ["a", "b", "a", "b"]
    contenders[0].count = 1
    lengths.clear()
    contenders[0].take_sample(clock, 0.1)
    assert lengths[-1] >= 0.1
    assert contenders[0].samples == pytest.approx([0.003] * 3)


def test_the_cuda_clock_counts_milliseconds_between_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, end: Event) -> float:
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", partial(log.append, "drain"))
    calls = [partial(log.append, name) for name in "ab"]
    assert timing.cuda_clock(calls, 3) == 0.25
    assert log == ["drain", "record", "a", "b", "a", "record", "wait"]


def plan_of(*given: str, only: Sequence[str] = ()) -> Plan:
    return ops.plan_of(arguments.session(arguments.parse(given), given), only)


def test_the_plan_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(L2_cache_size=2**26, total_memory=12 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    plan = plan_of("--full")
    assert plan.device.type == "cuda"
    assert plan.threads == (None,)
    assert plan.sizes_mb == (256.0, 64.0)  # 1024 MiB states would not fit in 12 GiB
    assert plan.cold_bytes == 8 * 2**26
    assert plan_of().sizes_mb == (256.0,)


def test_a_device_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ["meta"] + ["cuda"] * (not torch.cuda.is_available()):
        with pytest.raises(SystemExit):
            arguments.parse(["--device", name])
        assert f"got {name}" in capsys.readouterr().err


def test_a_right_provider_is_admitted() -> None:
    assert gate.refusal(fake_case(), provider(doubling)) is None


@pytest.mark.parametrize(
    ("bind", "reason"),
    [
        (lambda tensors: partial(tensors["state"].mul_, 3), "64 of 64 elements differ"),
        (lambda tensors: partial(tensors["state"][:-1].mul_, 2), "1 of 64 elements differ"),
        (lambda tensors: partial(tensors["state"].fill_, torch.nan), "got nan"),
        (lambda tensors: partial(int, "no number"), "ValueError: invalid literal"),
    ],
)
def test_a_wrong_provider_is_refused_and_not_timed(bind: Bind, reason: str) -> None:
    wrong = provider(bind)
    right = Provider("right", "alternative", doubling, doubling)
    case = fake_case(wrong, right)
    records = list(harness.run_case(TINY, 0.01, case, {}, on_sample=lambda: None))
    refused = next(record for record in records if record["provider"] == "mine")
    assert reason in refused["refused"]
    assert "p50_seconds" not in refused
    timed = next(record for record in records if record["provider"] == "right")
    assert timed["refused"] is None
    assert timed["p50_seconds"] > 0


def test_the_tolerance_is_in_epsilons_of_the_largest_value() -> None:
    epsilon = torch.finfo(torch.float32).eps
    wanted = {"x": torch.tensor([1.0, 0.25])}
    near = {"x": wanted["x"] + torch.tensor([0.0, 3 * epsilon])}
    assert gate.difference(near, wanted, 4.0) is None
    assert "1 of 2 elements differ" in (gate.difference(near, wanted, 2.0) or "")
    assert "expected torch.float32 (2,)" in (gate.difference({"x": near["x"][:1]}, wanted, 4) or "")
    assert "expected a tensor, got NoneType" in (gate.difference({"x": None}, wanted, 4) or "")


def test_poison_that_stays_in_an_output_is_found() -> None:
    written, poison = torch.ones(2), torch.tensor([1.0, torch.nan])
    assert gate.difference({"cast": poison}, {"cast": written}, 4.0)
    assert gate.difference({"cast": poison}, {"cast": poison.clone()}, 0.0) is None


def test_headlines_take_more_samples_unless_a_number_is_given() -> None:
    side, headline = fake_case(), replace(fake_case(), headline=True)

    def rounds(*given: str) -> tuple[int, int]:
        plan = plan_of("--device", "cpu", *given)
        return plan.rounds(headline), plan.rounds(side)

    assert (rounds("--full"), rounds(), rounds("--samples", "9")) == ((5, 3), (3, 3), (9, 9))


def test_sets_span_the_cold_bytes() -> None:
    plan = Plan(TINY.device, (1.0,), (1,), cold_bytes=2000)
    assert len(harness.tensor_sets(plan, fake_case())) == 4
    assert len(harness.tensor_sets(TINY, fake_case())) == 1
    assert len(harness.tensor_sets(plan, fake_case(bytes_moved=None))) == 1


def test_interpreted_triton_and_reference_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def names(device_type: str) -> list[str]:
        return ["cuda", "triton", "reference"]

    monkeypatch.setattr("revdeq_kernels.available_backends", names)
    gpu = Plan(torch.device("cuda"), (1.0,), (None,))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert providers.measured_backends(gpu) == ["cuda", "triton"]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert providers.measured_backends(gpu) == ["cuda"]
    with_reference = Plan(TINY.device, (1.0,), (1,), reference=True)
    assert providers.measured_backends(with_reference) == ["cuda", "reference"]


def run_tiny(folder: Path, *given: str, only: str = "ops") -> int:
    tiny = ("--quick", "--device", "cpu", "--sizes-mb", "0.01", "--samples", "1", "--threads", "1")
    return command.main([*tiny, "--only", only, "--out", str(folder), *given])


def test_a_run_stores_lines_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tiny(tmp_path, "--providers", "eager", "lerp_", "revdeq") == 0
    lines = (tmp_path / "ops.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert {record["provider"] for record in records} >= {"copy_", "eager", "lerp_", "revdeq cpu"}
    for record in records:
        assert record["refused"] is None
        assert record["p20_seconds"] <= record["p50_seconds"] <= record["p80_seconds"]
        rate = record["bytes"] / record["p50_seconds"] * 1e-9
        assert record["gb_per_second"] == pytest.approx(rate)
        assert record["share_of_bound"] == 1 or record["kind"] != "bound"
        assert all(record[name] for name in ("device_name", "torch", "commit", "date"))
    assert (tmp_path / "ops.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (tmp_path / "ops.svg").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "update_exact_ beta 0.7312" in printed
    assert "revdeq cpu" in printed


def test_a_refusal_fails_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("not today")

    monkeypatch.setitem(half_step.EAGER, "update_", broken)
    assert run_tiny(tmp_path, "--providers", "eager", only="half_step.update_") == 1
    assert "RuntimeError: not today" in capsys.readouterr().out


def test_a_quick_run_takes_the_headlines_or_what_is_named() -> None:
    def benchmarks(*only: str) -> set[str]:
        plan = plan_of("--device", "cpu", "--quick", only=only)
        return {case.benchmark for _, case in ops.planned_cases(plan)}

    assert benchmarks() == {"adjoint", "half_step", "exact_step", "passes"}
    assert benchmarks("residual.") == {"residual"}


# ---- the harness on what is known --------------------------------------------------------------

SLEEP = 0.02


def test_a_known_sleep_is_what_is_measured() -> None:
    """The median of three: a busy machine may make one of them late."""
    sleeper = timing.alone("sleeper", "revdeq", partial(time.sleep, SLEEP))
    timing.race([sleeper], timing.cpu_clock, rounds=3, minimum=2 * SLEEP)
    assert sleeper.count >= 2
    median = timing.quantiles(sleeper.samples)["p50_seconds"]
    assert SLEEP <= median < 2 * SLEEP


def test_who_fails_in_the_race_leaves_it_and_the_others_go_on() -> None:
    calls: list[str] = []

    def third_call_fails() -> None:
        calls.append("mine")
        if len(calls) == 3:
            raise MemoryError("no more")

    failing = timing.alone("failing", "revdeq", third_call_fails)
    other = timing.alone("other", "revdeq", partial(str, 1))
    clock: timing.Clock = lambda bound, count: (bound[0](), 1.0)[1]  # noqa: E731
    timing.race([failing, other], clock, rounds=4, minimum=0.1)
    assert failing.failure == "out of memory: no more"
    assert len(other.samples) == 4 and other.failure is None
    assert len(calls) == 3
    assert not timing.is_fault(failing.failure)
    assert timing.is_fault(timing.reason(ValueError("wrong")))
