"""Equilibrium cells executed with their launches for a GPU, and checks of the results.

The code here runs in a process in which Triton compiles (``compiling.py``).
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
"""Several, so that the order of summation of their gradients of W can be determined."""


@dataclass(frozen=True)
class Case:
    """A cell, the implementation that runs it, and the target architecture."""

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
        """This many whole tiles and a partial one; every second row halts, if rows may halt."""
        configurations = choice.launcher(self.implementation).kernels.CONFIGURATIONS
        rows = self.tiles * configurations[self.dtype][self.features].tile + 5
        numbers = {"act": self.act, "state": self.state, "beta": self.beta, "steps": self.steps}
        cell = make(rows, self.features, DTYPES[self.dtype], **numbers)
        if self.halting:  # those rows start at their equilibrium, 0
            cell.u[::2], cell.z0[::2] = 0.0, 0.0
            return replace(cell, tol=1e-6)
        return cell


class Ran(NamedTuple):
    """The results of both ops, and each program's gradient of W before summation."""

    out: Solved
    back: Gradients
    grads_w: Tensor


def run(case: Case, change: Callable[[str], str] | None = None) -> Ran:
    """Both passes on the executor, with `change` applied to the PTX of each kernel."""
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
    """What is wrong with the results of a cell; empty if nothing is.

    Raises ``tools.ptx.errors.Fault`` for faults.
    """
    ran, cell = run(case, change), case.cell
    found = [*_of_counts(case, ran), *_of_sum(ran), *_of_composite(case, cell, ran)]
    return found + ([] if case.halting or case.steps > 1 else _of_bounds(case, cell, ran))


def _of_counts(case: Case, ran: Ran) -> list[str]:
    """All rows are reconstructed, exact states bit for bit, without leaving their range."""
    found = {"flag": ran.out.flag.item(), "lost": ran.back.lost.item()}
    if case.state == "exact":
        found["distance"] = ran.back.distance.item()
    return [f"{name} is {value}" for name, value in found.items() if value]


def _of_sum(ran: Ran) -> list[str]:
    """The gradient of W equals the sum over programs in order, bit for bit."""
    total = np.zeros_like(ran.back.grad_w.numpy())
    for grad in ran.grads_w.numpy():
        total = total + grad
    same = np.array_equal(total, ran.back.grad_w.numpy(), equal_nan=True)
    return [] if same else ["grad_w is not the sum over programs in their order"]


def _of_composite(case: Case, cell: Cell, ran: Ran) -> list[str]:
    """Results match the composite up to rounding errors, in norm; see ``Launcher.differs``."""
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
    """Every element is within its error bound, if the bound is useful."""
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
    """Run a test of tests/cell, given as "module.name", on code compiled for an architecture."""
    module, _, name = test.partition(".")
    function = getattr(importlib.import_module(f"tests.cell.{module}"), name)
    with mock.patch.object(choice, "why_not", return_value=None), executed(sm):
        function(**arguments)
