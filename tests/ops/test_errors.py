"""Invalid arguments: the same errors with the same messages on every backend, before any write.

Arguments that share memory are tested in test_overlap.py.
"""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import revdeq_kernels as rk
from tests.conftest import BACKENDS
from tests.ops import bad_input, bad_input_back
from tests.ops.arguments import (
    OPS,
    Memory,
    assert_compiled_op_refuses,
    call,
    good_arguments,
    lead_of,
    owner_of,
    refusal,
    tensors,
)


@pytest.mark.parametrize(
    ("op", "case"),
    [
        pytest.param(op, case, id=f"{op}-{case.label}".replace(" ", "-"))
        for case in (*bad_input.CASES, *bad_input_back.CASES)
        for op in case.ops
    ],
)
def test_bad_input_is_refused(op: str, case: bad_input.Case) -> None:
    arguments = good_arguments(op)
    for name, new in case.change.items():
        arguments[name] = new(arguments[name]) if callable(new) else new
    memory = Memory(arguments)
    messages = [refusal(op, arguments, backend, case.kind) for backend in BACKENDS]
    pattern = ".*".join(re.escape(part) for part in f"{op}: {case.message}".split("..."))
    assert re.fullmatch(pattern, messages[0])
    assert set(messages) == {messages[0]}
    assert_compiled_op_refuses(op, arguments, messages[0])
    memory.assert_untouched()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_good_input_is_taken(op: str, backend: str) -> None:
    """What test_bad_input_is_refused changes is refused for the change alone."""
    with rk.backend(backend):
        call(op, good_arguments(op))


@pytest.mark.parametrize(
    ("op", "name"),
    [(op, name) for op in OPS for name in tensors(good_arguments(op)) if name != lead_of(op)],
)
def test_another_device_is_refused(op: str, name: str) -> None:
    """The other device is torch's meta device; test_cuda_runtime.py has a real one."""
    arguments = good_arguments(op)
    arguments[name] = arguments[name].to("meta")
    like = owner_of(op, name)
    memory = Memory(arguments)
    for backend in BACKENDS:
        message = refusal(op, arguments, backend, ValueError)
        assert message == (
            f"{op}: {name}: expected cpu, the device of {like}, got meta; "
            f"move it with {name}.to({like}.device)"
        )
    memory.assert_untouched()


near = st.floats(-1e-3, 1e-3)


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(
        st.floats(),
        st.floats(0, 2),
        near.map(lambda d: 1 - 1 / 256 + d * 2.0**-20),
        near.map(lambda d: 1 + 1 / 256 + d * 2.0**-20),
        near.map(lambda d: 1 + d * 2.0**-40),
        near.map(lambda d: abs(d) * 2.0**-16),
        near.map(lambda d: 2 - abs(d) * 2.0**-16),
    )
)
@example(1 - 1 / 256)
@example(1 + 1 / 256)
@example(-math.nan)
@example(1 - 2.0**-31)
def test_compiled_and_python_checks_agree_on_beta(beta: float) -> None:
    """The compiled ops refuse a beta where the Python checks do."""
    for op in ("update_", "update_exact_"):
        digits = torch.zeros(32, dtype=torch.uint8)
        arguments = good_arguments(op, (1,)) | {"beta": beta, "digits": digits}
        if op == "update_":
            del arguments["digits"]
        with rk.backend("reference"):
            python = error_of(op, arguments)
        if python is None:
            call(op, arguments, "revdeq")
        else:
            assert_compiled_op_refuses(op, arguments, python)


def error_of(op: str, arguments: dict[str, Any]) -> str | None:
    try:
        call(op, arguments)
    except ValueError as error:
        return str(error)
    return None
