"""Whom an instant of a trace counts for: traces made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from bench.profile.attribution import Nodes, parts_of

NODES = Nodes(solves={"_SolveBackward"}, half_steps={"_StepBackward"})
ENGINE = "autograd::engine::evaluate_function: "


def span(name: str, begin: float, end: float, cat: str = "user_annotation") -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": begin, "dur": end - begin}


def op(name: str, begin: float, end: float) -> dict[str, Any]:
    return span(name, begin, end, "cpu_op")


def microseconds(parts: dict[str, float] | None) -> dict[str, float]:
    assert parts is not None
    return {name: round(1e6 * seconds, 6) for name, seconds in parts.items() if seconds}


def host(*events: dict[str, Any]) -> dict[str, float]:
    found = parts_of([span("step", 0, 100), *events], NODES)
    assert sum(found.host.values()) == pytest.approx(found.step)
    return microseconds(found.host)


def test_the_innermost_range_or_operation_counts() -> None:
    parts = host(
        span("forward", 5, 60),
        span("half step 0: f", 10, 30),  # 20, of which the op is a part
        op("aten::mm", 12, 20),
        span("half step 0: update", 30, 40),
        span("kernel: update_exact_", 32, 37),  # 5
        op("aten::empty", 33, 34),
        op("aten::clone", 50, 52),  # 2
        op("aten::copy_", 51, 52),
        span("check", 55, 58),  # 3
        op("aten::any", 56, 57),
    )
    expected = {"f": 20, "half steps": 5, "other ops": 2, "check": 3, "Python and gaps": 70}
    assert parts == expected


def test_the_way_back_of_a_solve_is_taken_apart() -> None:
    parts = host(
        span("backward", 0, 90),
        op(f"{ENGINE}_SolveBackward", 10, 80),
        op("_SolveBackward", 11, 79),
        span("half step 1: f again", 20, 30),
        span("half step 1: product", 30, 50),
        op(f"{ENGINE}AddmmBackward0", 35, 45),
        op(f"{ENGINE}LerpBackward0", 45, 47),  # f may use lerp
        op("aten::_foreach_add_", 50, 54),
    )
    assert parts == {"f again": 10, "products": 20, "other ops": 4, "Python and gaps": 66}


def test_the_backward_pass_of_the_loop_is_taken_apart() -> None:
    parts = host(
        span("backward", 0, 100),
        op(f"{ENGINE}LerpBackward0", 0, 10),
        op("LerpBackward0", 1, 9),
        op(f"{ENGINE}_StepBackward", 10, 16),
        op(f"{ENGINE}AddmmBackward0", 20, 60),
        span("half step 3: f again", 30, 40),  # a checkpoint computes it again in there
    )
    expected = {"half steps": 16, "products": 30, "f again": 10, "Python and gaps": 44}
    assert parts == expected


def test_what_f_does_counts_for_f() -> None:
    """Its kernels, its solves and its products."""
    parts = host(
        span("half step 0: f", 10, 90),
        span("kernel: update_", 20, 30),
        span("half step 0: f again", 30, 40),
        span("half step 5: product", 40, 50),
        span("check", 50, 60),
    )
    assert parts == {"f": 80, "Python and gaps": 20}


def test_a_span_that_outlives_the_one_around_it_counts_to_its_own_end() -> None:
    """As those of another thread may, by microseconds."""
    parts = host(span("half step 0: f", 10, 30), op("aten::clone", 40, 50), span("check", 45, 60))
    assert parts == {"f": 20, "other ops": 5, "check": 15, "Python and gaps": 60}


def test_what_lies_outside_of_the_step_does_not_count() -> None:
    parts = host(
        op("aten::clone", -9, -5), op("aten::clone", -5, 2), span("check", 10, 20),
        op("aten::clone", 99, 120), op("aten::clone", 120, 130),
    )  # fmt: skip
    assert parts == {"check": 10, "other ops": 1, "Python and gaps": 89}


def test_a_device_counts_for_what_launched_it() -> None:
    def launch(number: int, at: float, cat: str = "cuda_runtime") -> dict[str, Any]:
        return span("cudaLaunchKernel", at, at + 1, cat) | {"args": {"correlation": number}}

    def kernel(number: int, begin: float, end: float, cat: str = "kernel") -> dict[str, Any]:
        return span("k", begin, end, cat) | {"args": {"correlation": number}}

    found = parts_of(
        [
            span("step", 0, 100),
            span("half step 0: f", 10, 20), launch(1, 12),
            span("kernel: update_", 20, 25), launch(2, 21, "cuda_driver"),
            op("aten::copy_", 30, 35), launch(3, 31),
            launch(4, 36),
            span("half step 1: product", 40, 60), launch(5, 41),
            kernel(1, 15, 40), kernel(2, 40, 45), kernel(3, 45, 47, "gpu_memcpy"),
            kernel(4, 47, 48), kernel(5, 60, 95), kernel(9, 95, 96, "gpu_memset"),
        ],
        NODES,
    )  # fmt: skip
    expected = {"f": 25, "half steps": 5, "other ops": 4, "products": 35, "Python and gaps": 31}
    assert microseconds(found.device) == expected
    assert parts_of([span("step", 0, 1)], NODES).device is None


@pytest.mark.parametrize("count", [0, 2])
def test_a_trace_of_another_number_of_steps_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"expected one range 'step', got {count}"):
        parts_of([span("step", i, i + 1) for i in range(count)], NODES)
