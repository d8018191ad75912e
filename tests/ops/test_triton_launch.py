"""Launches of the Triton backend: all are compiled ahead of time, and lists need few kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from revdeq_kernels.core.op import OPS as KNOWN
from revdeq_kernels.core.samples import samples
from tests.conftest import BACKENDS, random_state
from tests.ops.arguments import (
    CHANNELS,
    EXACT_OPS,
    EXACT_PASSES,
    LISTS,
    OPS,
    as_called,
    by_field,
    good_arguments,
)
from tests.ops.device_checks import FORM_BETAS, place

if "triton" not in BACKENDS:
    pytest.skip("Triton's interpreter is off", allow_module_level=True)

from revdeq_kernels.triton import launch as launchers
from revdeq_kernels.triton.launch import half_step, leaves, passes
from tools.aot import signatures as compiled

TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.uint8: "u8",
}

Launch = tuple[str, dict[str, Any]]
"""A kernel's name, and of each parameter the type, or the value if it is a constant."""


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """The launches made from now on, which do nothing else."""
    made: list[Launch] = []

    def record(kernel: Any, programs: int, lead: Tensor, *args: Any, **constants: Any) -> None:
        assert programs > 0
        names = kernel.arg_names[: len(args)]
        given = by_field(dict(zip(names, args, strict=True)))
        types = {name: type_of(a) for name, a in given.items()}
        made.append((kernel.fn.__name__, types | constants))

    for module in (half_step, passes):
        monkeypatch.setattr(module, "launch", record)
    return made


def type_of(argument: Any) -> Any:
    """As in tools/aot/signatures.py, but that an integer is not looked at further."""
    if isinstance(argument, tuple):
        return tuple(map(type_of, argument))
    if isinstance(argument, Tensor):
        return f"*{TYPES[argument.dtype]}"
    if isinstance(argument, int):
        return "i32" if -(2**31) <= argument < 2**31 else "i64"
    return "fp32" if isinstance(argument, float) else argument


def listed() -> list[Launch]:
    """The launches of tools/aot/signatures.py in the same terms."""

    def plain(kind: Any) -> Any:
        if isinstance(kind, tuple):
            return tuple(map(plain, kind))
        return "i32" if kind == "1" else kind and kind.partition(":")[0]

    found = []
    for _, kernel, signature, keywords in compiled.signatures():
        types = {name: plain(kind) for name, kind in by_field(signature).items()}
        constants = {name: v for name, v in keywords.items() if name in kernel.arg_names}
        found.append((kernel.fn.__name__, types | constants))
    return found


def form(made: Launch) -> tuple[Any, ...]:
    """A launch without the types behind its pointers, and without regard to `cast`."""

    def plain(kind: Any) -> Any:
        if isinstance(kind, tuple):
            return tuple(map(plain, kind))
        return "*" if isinstance(kind, str) and kind.startswith("*") else kind

    name, arguments = made
    return name, *sorted((n, plain(a)) for n, a in arguments.items() if n != "cast")


def pointers(made: Launch) -> set[tuple[Any, ...]]:
    """The type of each of its pointers."""
    name, arguments = made
    return {(name, n, a) for n, a in arguments.items() if "*" in str(a)}


def assert_listed(made: list[Launch]) -> None:
    """Raise AssertionError if a form, or the type of a parameter, is not in signatures.py."""
    forms = {str(form(known)) for known in listed()}
    kinds = set().union(*map(pointers, listed()))
    for one in made:
        assert str(form(one)) in forms, one
        assert pointers(one) <= kinds, pointers(one) - kinds


def call(op: str, args: Any, keywords: Any) -> None:
    """Call the launching function of an op."""
    getattr(launchers, op.partition(".")[0])(*args, **keywords)


@pytest.mark.parametrize("op", [*OPS, *CHANNELS])
def test_every_launch_is_compiled_ahead_of_time(op: str, launches: list[Launch]) -> None:
    for args, keywords in samples(KNOWN[op]):
        call(op, args, keywords)
    assert launches
    assert_listed(launches)


@pytest.mark.parametrize("op", EXACT_OPS + EXACT_PASSES)
def test_every_exact_form_is_compiled_ahead_of_time(op: str, launches: list[Launch]) -> None:
    for beta in FORM_BETAS:
        for tie in (0, 1):
            call(op, *as_called(op, good_arguments(op, (64,), beta=beta, tie=tie)))
    assert_listed(launches)


@pytest.mark.parametrize("op", LISTS)
def test_lists_are_compiled_ahead_of_time(op: str, launches: list[Launch]) -> None:
    """Of three leaves, with the types of one combination."""
    arguments = good_arguments(op, (48,), beta=0.7312)
    for name, value in arguments.items():
        if isinstance(value, list):
            arguments[name] = [value[0], value[0], value[2]]
    call(op, *as_called(op, arguments))
    assert_listed(launches)


def test_leaves_of_a_launch_are_of_one_kind() -> None:
    """Beside each other, a size 1 and a multiple of 16 would be one more kernel to compile."""
    sizes = (64, 1, 33, 80, 1, 47, 64, 0)
    states = [random_state((n,), torch.float32) for n in sizes]
    fs = [random_state((n,), torch.bfloat16) for n in sizes]
    states[6] = place(states[6], "cpu", 1)
    groups = [group["state"] for group in leaves.grouped(state=states, f=fs)]
    assert [[t.numel() for t in group] for group in groups] == [[64, 80], [1, 1], [33, 47], [64]]


def test_many_leaves_take_several_launches() -> None:
    states = [random_state((64,), torch.float32) for _ in range(2 * leaves.LEAVES_AT_ONCE + 1)]
    groups = [group["state"] for group in leaves.grouped(state=states)]
    assert [len(group) for group in groups] == [leaves.LEAVES_AT_ONCE, leaves.LEAVES_AT_ONCE, 1]
