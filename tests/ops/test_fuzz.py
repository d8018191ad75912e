"""Arbitrary arguments: the right value or a named error on every backend alike, and no crash.

fuzzing.py draws the arguments; fuzz_table.py explains how to add an op. The reference defines what
is right; its own values are compared to real arithmetic if they are ordinary (real_arithmetic.py).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import revdeq_kernels as rk
from revdeq_kernels.core.memory import same_strides
from revdeq_kernels.core.roles import BETAS, DIGITS, FLAG
from tests.conftest import BACKENDS, in_a_thread
from tests.ops.arguments import NAMESPACES, WRITTEN, bits, call, refusal_of_kernel
from tests.ops.fuzz_example import Example, View
from tests.ops.fuzz_table import SPECS, Spec
from tests.ops.fuzzing import examples
from tests.ops.real_arithmetic import CHECKS

EXAMPLES = {"cpu": 300, "triton": 60}
NIGHTLY_EXAMPLES = {"cpu": 25_000, "triton": 1_500}
"""Of all ops together. Each makes three to five calls: 10^3 in all, and by night 10^5. A call takes
Triton's interpreter a hundred times as long as a kernel of the CPU."""

CASES = [
    pytest.param(name, backend, id=f"{name.replace(' ', '-')}-{backend}")
    for backend in BACKENDS
    if backend != "reference"
    for name in SPECS
]
TENSORS = ("tensor", "parameter", "negative", "meta")
"""The kinds of tensors that torch.ops hands on to the op."""

# torch.ops.revdeq calls these by another name than torch does, or fails to read them at all.
NAMELESS = {
    dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
    and re.search(r"bits|float[48]_|uint(16|32|64)|u?int[1-7]$|complex32", str(dtype))
}

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)

pytestmark = pytest.mark.filterwarnings("ignore:B?Complex(Half|32) support is experimental")


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_arbitrary_arguments(name: str, backend: str) -> None:
    fuzz(name, backend, EXAMPLES[backend], settings(derandomize=True, database=None))


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "backend"), CASES)
def test_more_arbitrary_arguments(name: str, backend: str) -> None:
    fuzz(name, backend, NIGHTLY_EXAMPLES[backend], settings(print_blob=True))


def fuzz(name: str, backend: str, count: int, how: settings) -> None:
    """Check one op's share of the examples."""
    share = -(-count // len(SPECS))

    @settings(how, max_examples=share, deadline=None, suppress_health_check=SLOW)
    @given(examples(SPECS[name], name))
    def run(example: Example) -> None:
        check(SPECS[name], example, backend)

    run()


# ---- one call --------------------------------------------------------------------------------


class Run:
    """A call with an example's arguments, in memory of its own, and all that it did."""

    def __init__(
        self, example: Example, memory: list[Tensor], backend: str | None, namespace: str | None
    ) -> None:
        """Call the public function on a backend (None: by default), or torch.ops.<namespace>."""
        self.label = f"torch.ops.{namespace}" if namespace else f"backend {backend}"
        self.memory = [m.clone() for m in memory]
        self.arguments = example.build(self.memory)
        self.result: Any = None
        self.error: Exception | None = None
        before = self._versions()
        run = partial(self._call, example, backend, namespace)
        if namespace is None:
            run()
        else:
            in_a_thread(run)
        self.counted = {
            name for name, version in self._versions().items() if version != before[name]
        }

    def _call(self, example: Example, backend: str | None, namespace: str | None) -> None:
        chosen = rk.backend(backend) if backend else contextlib.nullcontext()
        with chosen, torch.set_grad_enabled(example.grad_mode):
            try:
                self.result = call(example.op, self.arguments, namespace)
            except Exception as error:  # which one, is judged below
                self.error = error

    def _versions(self) -> dict[str, int]:
        return {n: t._version for n, t in labelled(self.arguments).items() if isinstance(t, Tensor)}


def labelled(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, the entries of a list by "name[i]"."""
    found = {}
    for name, value in arguments.items():
        several = isinstance(value, (list, tuple))
        found |= {f"{name}[{i}]": v for i, v in enumerate(value)} if several else {name: value}
    return found


def check(spec: Spec, example: Example, backend: str) -> None:
    """Raise AssertionError unless the call does on the backend what it does on the reference."""
    recorded = torch.ones(1, requires_grad=True).neg().requires_grad
    assert recorded, "a call before this one turned autograd off"
    memory = example.memory()
    want = Run(example, memory, "reference", None)
    assert_right(spec, example, memory, want)
    ways: list[tuple[str | None, str | None]] = [(backend, None), (None, NAMESPACES[backend])]
    if backend == "cpu":
        ways += [(None, None), (None, NAMESPACES["reference"])]
    for named, namespace in ways:
        got = Run(example, memory, named, namespace)
        if namespace and not torch_takes(spec, example):
            if got.error is not None and not isinstance(got.error, (TypeError, RuntimeError)):
                assert_refusal(example, got.error)
        elif named and "cannot run for meta tensors" in str(got.error):
            assert example.has("meta")
        elif want.error is not None:
            assert_same_refusal(example, got, want)
        else:
            assert got.error is None, f"{got.label} refuses: {got.error!r}"
            assert_only_outputs_written(spec, example, memory, got)
            assert_same_outcome(spec, example, got, want)
        if got.error is not None:
            assert_untouched(got, memory)
    if backend == "cpu" and torch_takes(spec, example):
        assert_kernel_refuses(example, memory, want)


def assert_right(spec: Spec, example: Example, memory: list[Tensor], run: Run) -> None:
    """What can be said of a call on the reference without another backend."""
    if run.error is not None:
        assert not example.good, f"good arguments are refused: {run.error!r}"
        assert_refusal(example, run.error)
        assert_untouched(run, memory)
        return
    assert_only_outputs_written(spec, example, memory, run)
    if example.op.endswith("_"):
        lead = run.arguments[spec.lead]
        assert all(a is b for a, b in zip(several(run.result), several(lead), strict=True))
    plain = not (example.has("meta") or BETAS in spec.tensors.values() or spec.lists)
    if example.op in CHECKS and plain:
        for before, after, result in entries(spec, example, memory, run):
            CHECKS[example.op](before, after, example.values, result)


# ---- refusals --------------------------------------------------------------------------------


def torch_takes(spec: Spec, example: Example) -> bool:
    """Whether torch.ops takes the arguments for what they are, and hands them on to the op."""
    if example.op == "quantize" and spec.lists:
        return False  # there torch.ops is given the results
    for name, number in spec.numbers.items():
        value = example.values[name]
        if type(value) is not number.kind or (number.kind is int and abs(value) >= 2**63):
            return False
    for name, role in spec.tensors.items():
        value = example.values.get(name)
        if value is None:
            continue
        if type(value) is not (list if spec.lists and role not in (FLAG, BETAS) else View):
            return False
        if not all(isinstance(v, View) and v.kind in TENSORS for v in several(value)):
            return False
    return True


def assert_refusal(example: Example, error: Exception) -> None:
    """The error has the form of all messages."""
    if type(error) is RuntimeError:
        assert str(error).startswith(f"{example.op}: an argument requires grad, and the op has no ")
    else:
        assert type(error) in (TypeError, ValueError), repr(error)
        form = rf"{example.op}: (leaf \d+: )?\w+: expected .+, got .+; .+"
        assert re.fullmatch(form, str(error), re.DOTALL), repr(error)


def assert_same_refusal(example: Example, got: Run, want: Run) -> None:
    """The same type and message; torch.ops may add to it, and make it a RuntimeError."""
    told = f"{got.label}: {got.error!r}, but the reference: {want.error!r}"
    assert got.error is not None, told
    if got.label.startswith("torch.ops"):
        if not NAMELESS & example.dtypes():
            assert type(got.error) in (RuntimeError, type(want.error)), told
            assert str(got.error).startswith(str(want.error)), told
    else:
        assert type(got.error) is type(want.error) and str(got.error) == str(want.error), told


def assert_kernel_refuses(example: Example, memory: list[Tensor], want: Run) -> None:
    """The compiled op by itself refuses what the checks refuse, and names the same argument.

    Torch finds no kernel for empty lists.
    """
    empty = any(isinstance(value, list) and not value for value in example.values.values())
    refused = isinstance(want.error, (TypeError, ValueError))
    if refused and not empty and not NAMELESS & example.dtypes():
        arguments = example.build([m.clone() for m in memory])
        told = in_a_thread(refusal_of_kernel, example.op, arguments)
        assert told.startswith(str(want.error).partition(" expected ")[0] + " "), told


def assert_untouched(run: Run, memory: list[Tensor]) -> None:
    """Nothing was written, gaps included, and no version counted."""
    assert not run.counted, f"{run.label} counts {run.counted} as written"
    assert all(map(torch.equal, run.memory, memory)), f"{run.label} wrote before it refused"


# ---- values ----------------------------------------------------------------------------------


def several(value: Any) -> list[Any]:
    """The entries of a list, or the value as the only one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def written(example: Example) -> dict[str, View]:
    """The tensors that the op writes."""
    names = WRITTEN[example.op]
    views = example.views().items()
    return {n: v for n, v in views if n.split("[")[0] in names and v.kind != "None"}


def bytes_of(memory: Tensor, view: View) -> Tensor:
    """The bytes of a view's elements, in one more dimension."""
    item = view.dtype.itemsize
    strides = [s * item for s in view.strides]
    return memory.as_strided((*view.shape, item), (*strides, 1), view.start)


def outputs(spec: Spec, example: Example, memory: list[Tensor]) -> dict[str, Tensor]:
    """Which bytes of its buffer a call may write by way of each view."""
    found = {}
    for label, view in written(example).items():
        found[label] = torch.zeros_like(memory[view.buffer], dtype=torch.bool)
        size = view.shape
        if spec.tensors[label.split("[")[0]] == DIGITS:
            lead = example.views()[label.replace("digits", spec.lead)]
            size = (rk.digit_bytes(math.prod(lead.shape), float(example.values["beta"])),)
        if view.kind != "meta":
            bytes_of(found[label], replace(view, shape=size)).fill_(True)
    return found


def assert_only_outputs_written(
    spec: Spec, example: Example, memory: list[Tensor], run: Run
) -> None:
    """All other memory is as before, and nothing else shares an output's; versions say the same."""
    masks, views = outputs(spec, example, memory), example.views()
    assert run.counted == set(masks), f"{run.label} counts {run.counted} as written"
    for number, (now, before) in enumerate(zip(run.memory, memory, strict=True)):
        changed = now != before
        for label, found in masks.items():
            if views[label].buffer == number:
                changed &= ~found
        assert not changed.any(), f"{run.label} wrote beside its tensors"
    for (label, found), (other, view) in itertools.product(masks.items(), views.items()):
        if label != other and views[label].buffer == view.buffer and view.kind in TENSORS[:3]:
            assert not bytes_of(found, view).any(), f"{label} and {other} share memory"


def entries(
    spec: Spec, example: Example, memory: list[Tensor], run: Run
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor], Any]]:
    """The tensors before and after, and the result; of each entry of a list."""
    for i, result in enumerate(several(run.result)):
        views = {n: several(example.values[n]) for n in spec.tensors if example.values.get(n)}
        chosen = {n: v[i if len(v) > i else 0] for n, v in views.items()}
        chosen = {n: v for n, v in chosen.items() if v.kind != "None"}
        before, after = ({n: v.on(m) for n, v in chosen.items()} for m in (memory, run.memory))
        yield before, after, result


def assert_same_outcome(spec: Spec, example: Example, got: Run, want: Run) -> None:
    """The same bits, and the same object or a result with the same bits."""
    for label, view in written(example).items():
        if view.kind != "meta":
            told = f"{got.label}: {label}"
            assert_same_tensor(view.on(got.memory), view.on(want.memory), told)
    if not example.op.endswith("_"):
        for mine, other in zip(several(got.result), several(want.result), strict=True):
            assert_same_tensor(mine, other, f"{got.label}: result")
    elif got.label.startswith("torch.ops"):
        assert got.result is None
    else:
        lead = got.arguments[spec.lead]
        assert all(a is b for a, b in zip(several(got.result), several(lead), strict=True))


def assert_same_tensor(got: Tensor, want: Tensor, label: str) -> None:
    assert (got.dtype, got.shape, got.device) == (want.dtype, want.shape, want.device), label
    assert same_strides(got, want), f"{label}: strides"
    if got.device.type != "meta":
        assert torch.equal(bits(got), bits(want)), f"{label} differs from the reference"
