"""The two ops behind the cell's CPU kernel raise instead of accessing memory out of bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from revdeq_kernels.ops.cell import cpu
from revdeq_kernels.ops.cell.arguments import BACKWARD, FORWARD, Numbers
from tests.cell.linear_cells import make
from tests.conftest import BACKENDS

if "cpu" not in BACKENDS:
    pytest.skip("the extension is not built", allow_module_level=True)

F32 = torch.float32
CASES = {
    "exact": {"state": "exact"},
    "float32": {"state": "float32"},
    "halting": {"state": "exact", "tol": 0.1},
}
WRITTEN = {
    FORWARD: ("y", "z", "fixed", "digits", "flag", "taken", "residual"),
    BACKWARD: ("grad_u", "grad_w", "grad_z0", "distance", "lost"),
}


def arguments(way: str, case: str) -> dict[str, Any]:
    """Good ones, by their names in the schema."""
    cell = make(13, 7, F32, steps=3, **CASES[case])
    out = cpu.forward(cell.tensors, cell.numbers)
    ends = out.ends(cell.grad_y, cell.grad_z, cell.numbers)
    tensors = cell.tensors._asdict()
    if way == FORWARD:
        return tensors | of_numbers(cell.numbers) | out._asdict()
    back = cpu.backward(ends, cell.tensors, cell.numbers)
    return ends._asdict() | tensors | of_numbers(cell.numbers) | back._asdict()


def of_numbers(numbers: Numbers) -> dict[str, Any]:
    names = ("beta", "steps", "act", "exact", "frac_bits", "tol")
    return dict(zip(names, cpu._plain(numbers), strict=True))


def call(way: str, given: dict[str, Any]) -> None:
    op = cpu._op(f"_{way}_")
    op(*(given[argument.name] for argument in op._schema.arguments))


def others(name: str, value: Any) -> Iterator[Any]:
    """What an argument must not be."""
    numbers: dict[str, tuple[Any, ...]] = {
        "beta": (0.0, 1.0, 2.0, -0.5, math.nan, math.inf),
        "steps": (0, -1, 2, 2**31, 2**62),
        "act": (-1, 5, 2**40),
        "frac_bits": (-1, 31, 2**40),
        "tol": (-1.0, math.nan),
    }
    if not isinstance(value, Tensor):
        yield from numbers.get(name, ())
        return
    other = torch.int16 if value.dtype != torch.int16 else torch.int32
    yield value.to(other)
    yield torch.cat([value.flatten(), value.new_zeros(1)])
    if value.numel() > 0:
        yield value.flatten()[1:]
        if name != "grad_z0":  # without elements it says that nobody wants it
            yield value.new_empty(0)
    if value.dim() > 1:
        yield value.new_zeros(*value.shape, 2)[..., 0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", [FORWARD, BACKWARD])
def test_what_does_not_fit_is_refused_before_anything_is_written(way: str, case: str) -> None:
    good = arguments(way, case)
    call(way, good)
    tried = 0
    for name, value in good.items():
        for bad in others(name, value):
            if name == "steps" and bad == 2 and case == "float32":
                continue  # nothing has a plane for each step
            written = {n: good[n].clone() for n in WRITTEN[way] if n != name}
            with pytest.raises(RuntimeError, match=f"_{way}_: "):
                call(way, good | {name: bad})
            assert all(torch.equal(good[n], before) for n, before in written.items()), name
            tried += 1
    assert tried > 50


@pytest.mark.parametrize("case", CASES)
def test_no_features_and_too_many_are_refused(case: str) -> None:
    for features in (0, 513):
        cell = make(2, features or 1, F32, steps=1, **CASES[case])
        if features == 0:
            cell = replace(cell, u=cell.u[:, :0], w=cell.w[:0, :0], z0=cell.z0[:, :0])
        with pytest.raises(RuntimeError, match="_linear_cell_forward_: z0: not of 1 to 512"):
            cpu.forward(cell.tensors, cell.numbers)
