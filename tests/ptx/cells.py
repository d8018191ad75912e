"""Equilibrium cells as their launchers launch them on a GPU, executed; and what they must be.

What runs here does so in a process whose Triton compiles (``compiling.py``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from revdeq_kernels.ops.cell import choice
from revdeq_kernels.ops.cell import reference as composite
from revdeq_kernels.ops.cell.arguments import Gradients, Solved
from revdeq_kernels.triton.launch import cell as launch_cell
from tests.cell.linear_cells import Cell, Outcome, make
from tests.cell.tolerances import APART, SPLIT, bounded
from tools.ptx.triton import executed

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

PROGRAMS = 3
"""So that the order in which their gradients of W are added up can be told."""


@dataclass(frozen=True)
class Case:
    """A cell, the implementation that runs it and the architecture that this is compiled for."""

    sm: int
    implementation: str
    dtype: str
    features: int
    act: str = "tanh"
    state: str = "exact"
    beta: float = 0.5
    steps: int = 1
    halting: bool = False
    tiles: int = 3

    def __str__(self) -> str:
        words = (f"sm{self.sm}", self.implementation, self.dtype, self.features, self.act)
        halting = ("halting",) if self.halting else ()
        return "-".join(map(str, (*words, self.state, self.beta, self.steps, *halting)))

    @property
    def cell(self) -> Cell:
        """So many whole tiles and a part of one; every second row halts, if one may."""
        configurations = choice.launcher(self.implementation).kernels.CONFIGURATIONS
        rows = self.tiles * configurations[self.dtype][self.features].tile + 5
        numbers = {"act": self.act, "state": self.state, "beta": self.beta, "steps": self.steps}
        cell = make(rows, self.features, DTYPES[self.dtype], **numbers)
        if self.halting:  # those rows begin at their equilibrium, 0
            cell.u[::2], cell.z0[::2] = 0.0, 0.0
            return replace(cell, tol=1e-6)
        return cell


class Ran(NamedTuple):
    """What both ops returned, and the gradients of W that the programs left for their sum."""

    out: Solved
    back: Gradients
    grads_w: Tensor


def run(case: Case, change: Callable[[str], str] | None = None) -> Ran:
    """Forward and back on the executor, `change` made to the PTX of each kernel."""
    cell, launcher = case.cell, choice.launcher(case.implementation)
    with (
        mock.patch.object(launch_cell, "INTERPRETED_PROGRAMS", PROGRAMS),
        executed(case.sm) as gpu,
    ):
        gpu.change = change
        out = launcher.forward(cell.tensors, cell.numbers)
        ends = out.ends(cell.grad_y, cell.grad_z, cell.numbers)
        back = launcher.backward(ends, cell.tensors, cell.numbers)
        (last,) = (one for one in gpu.launches if one.source.fn.__name__ == "sum_programs")
        return Ran(out, back, last.arguments["of_programs"][0])


def problems(case: Case, change: Callable[[str], str] | None = None) -> list[str]:
    """What is wrong with the results of a cell, nothing for one that is as it should be.

    Faults come out of it as ``tools.ptx.errors.Fault``.
    """
    ran, cell = run(case, change), case.cell
    found = [*_of_counts(case, ran), *_of_sum(ran), *_of_composite(case, cell, ran)]
    return found + ([] if case.halting or case.steps > 1 else _of_bounds(case, cell, ran))


def _of_counts(case: Case, ran: Ran) -> list[str]:
    """All rows come back, those of an exact state bit for bit, within the range of its numbers."""
    found = {"flag": ran.out.flag.item(), "lost": ran.back.lost.item()}
    if case.state == "exact":
        found["distance"] = ran.back.distance.item()
    return [f"{name} is {value}" for name, value in found.items() if value]


def _of_sum(ran: Ran) -> list[str]:
    """The gradient of W has the bits of the sum in the order of the programs."""
    total = np.zeros_like(ran.back.grad_w.numpy())
    for grad in ran.grads_w.numpy():
        total = total + grad
    same = np.array_equal(total, ran.back.grad_w.numpy(), equal_nan=True)
    return [] if same else ["grad_w is not the sum over programs in their order"]


def _of_composite(case: Case, cell: Cell, ran: Ran) -> list[str]:
    """Results are those of the composite up to roundings, in norm; see ``Launcher.differs``."""
    out = composite.forward(cell.tensors, cell.numbers)
    ends = out.ends(cell.grad_y, cell.grad_z, cell.numbers)
    back = composite.backward(ends, cell.tensors, cell.numbers)
    kept = ("y", "z", "taken", "residual")
    unit = 2.0**-15 if case.dtype == "fp32" else torch.finfo(DTYPES[case.dtype]).eps
    found = []
    for name, want, got in (
        *((name, getattr(out, name), getattr(ran.out, name)) for name in kept),
        *zip(Gradients._fields[:3], back[:3], ran.back[:3], strict=True),
    ):
        if want.numel() > 0:
            far = (got.double() - want.double()).norm() / want.double().norm()
            if not far <= (0 if name == "taken" else unit):
                found.append(f"{name} is {far:.2g} off the composite, {unit:.2g} are explained")
    return found


def _of_bounds(case: Case, cell: Cell, ran: Ran) -> list[str]:
    """Every element is within the bound of its error, where that says something."""
    got = Outcome(ran.out.y, ran.out.z, *ran.back[:3])
    values, errors = bounded(cell, SPLIT if case.dtype == "fp32" else APART)
    found = []
    for name, value, error, result in zip(Outcome._fields, values, errors, got, strict=True):
        if error.norm() < 0.2 * value.norm():
            far = float(((result.double() - value).abs() - error).max())
            if not far <= 0:
                found.append(f"{name} is {far:.3g} beyond its bound")
    return found


def behave(sm: int, test: str, arguments: dict[str, Any]) -> None:
    """Run a test of tests/cell, as "module.name", on what is compiled for an architecture."""
    module, _, name = test.partition(".")
    function = getattr(importlib.import_module(f"tests.cell.{module}"), name)
    with mock.patch.object(choice, "why_not", return_value=None), executed(sm):
        function(**arguments)
