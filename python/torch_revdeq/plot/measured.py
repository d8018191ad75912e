"""Measures the cost of depth: the memory of a training step, and its gradient error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..adjoints.reconstruction import float_tolerance
from ..evaluation.boundary import CaptureError
from ..evaluation.effects.converted import converted
from ..evaluation.effects.modules import modules_of
from ..evaluation.effects.written import buffers_kept
from ..evaluation.flat_function import flatten
from ..evaluation.rng import RngReplay
from ..runtime.deferred import ReconstructionError
from ..runtime.peak_memory import peak_bytes
from ..solver import solve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXACT, STORED = "reversible, exact state", "stored activations"


@dataclass(frozen=True, eq=False)
class Depth:
    """Memory and gradient error of each method of differentiation, by number of steps.

    Attributes:
        steps: steps of the solves, of two evaluations of f each.
        memory: by method, the peak bytes allocated in the forward and backward pass, excluding the
            cell, its input and its state; None where the device ran out of memory.
        error: by method, the norm of the gradient's difference from the float64 reference, divided
            by the norm of the reference; NaN where there is no gradient.
        raises: by method, whether ``backward()`` raises ``ReconstructionError``.
        figure: the plot.
    """

    steps: tuple[int, ...]
    memory: dict[str, list[int | None]]
    error: dict[str, list[float]]
    raises: dict[str, list[bool]]
    figure: Figure | None = field(default=None, repr=False)


def measure(
    f: Callable[..., Any], z0: Any, args: tuple[Any, ...], steps: Sequence[int], options: Any
) -> Depth:
    """The measurements of ``depth``, without a figure."""
    if any(leaf.dtype == torch.float64 for leaf in flatten("z0", z0)[0]):
        raise TypeError(
            "z0: expected float32 or less, got torch.float64; pass z0.float() and an f in "
            "float32, which is compared with itself in float64"
        )
    cell = _Cell(f, z0, args, options)
    dtype = cell.state_dtype
    ways: dict[str, dict[str, Any]] = {
        EXACT: {"state": "exact", "adjoint": "reversible"},
        f"reversible, {str(dtype).removeprefix('torch.')} state": {
            "state": dtype,
            "adjoint": "reversible",
            "check": math.inf,  # measured, not raised
        },
        STORED: {"state": dtype, "adjoint": "backprop"},
    }
    memory: dict[str, list[int | None]] = {name: [] for name in ways}
    error: dict[str, list[float]] = {name: [] for name in ways}
    raises: dict[str, list[bool]] = {name: [] for name in ways}
    for way in ways.values():
        cell.run(steps[0], **way)  # warm-up, for memory that is allocated once
    for count in steps:
        with cell.in_float64() as wide:
            reference = wide.run(count, state=torch.float64, adjoint="backprop").gradients
        for name, way in ways.items():
            found = cell.measured(count, **way)
            memory[name].append(found.bytes)
            error[name].append(_distance(found.gradients, reference))
            raises[name].append(
                name != EXACT
                and found.reconstruction_error is not None
                and not found.reconstruction_error <= float_tolerance(True, dtype)
            )
    return Depth(tuple(steps), memory, error, raises)


@dataclass(eq=False)
class _Run:
    """One forward and backward pass. `gradients`: of all leaves; None if there are none."""

    gradients: list[Tensor | None] | None
    reconstruction_error: float | None = None
    bytes: int | None = None


class _Cell:
    """f and its input, which are restored after every run."""

    def __init__(self, f: Callable[..., Any], z0: Any, args: tuple[Any, ...], options: Any) -> None:
        self.f, self.options = f, options
        self.modules = modules_of(f)
        self.z0, self.args = pytree.tree_map(_leaf, (z0, args))
        leaves = flatten("z0", z0)[0]
        self.device = leaves[0].device
        self.state_dtype = leaves[0].dtype
        self.random = RngReplay(self.device, "auto")

    def leaves(self) -> list[Tensor]:
        """The tensors to differentiate with respect to: z0, arguments, parameters."""
        given = [t for t in pytree.tree_leaves((self.z0, self.args)) if isinstance(t, Tensor)]
        known = {id(p): p for m in self.modules for p in m.parameters()}
        return [t for t in (*given, *known.values()) if t.requires_grad]

    def run(self, steps: int, **way: Any) -> _Run:
        """A forward and a backward pass, of a random projection of z."""
        self.random.restore(self.random.first)
        leaves = self.leaves()
        try:
            with buffers_kept(self.modules), torch.enable_grad():
                options = {**self.options, **way}
                solution = solve(self.f, self.z0, *self.args, max_steps=steps, **options)
                outputs = pytree.tree_leaves(solution.z)
                generator = torch.Generator().manual_seed(0)
                towards = [torch.randn(o.shape, generator=generator).to(o) for o in outputs]
                found = torch.autograd.grad(outputs, leaves, towards, allow_unused=True)
                solution.verify()
        except ReconstructionError:  # whatever the tolerance: the reversed states overflowed
            return _Run(None, math.nan)
        except CaptureError as error:  # it advises another adjoint, but that is fixed here
            raise TypeError(
                "f: expected to read its arguments, parameters and buffers, got another tensor "
                "that requires grad and was computed elsewhere; pass the tensor as an argument, "
                "depth(f, z0, tensor)"
            ) from error
        finally:
            self.random.restore(self.random.first)
        return _Run(list(found), solution.stats.reconstruction_error)

    def measured(self, steps: int, **way: Any) -> _Run:
        """A run, with its peak memory."""
        runs: list[_Run] = []
        try:
            peak = peak_bytes(lambda: runs.append(self.run(steps, **way)), self.device)
        except torch.OutOfMemoryError:
            return _Run(None)
        runs[0].bytes = peak
        return runs[0]

    @contextmanager
    def in_float64(self) -> Iterator[_Cell]:
        """The cell in float64; parameters and buffers are converted in place temporarily.

        Raises:
            TypeError: f cannot run in float64.
        """
        z0, args = pytree.tree_map(lambda t: _leaf(_double(t)), (self.z0, self.args))
        try:
            with converted(self.modules, _double):
                yield _Cell(self.f, z0, args, self.options)
        except RuntimeError as error:
            if "dtype" not in str(error):
                raise
            raise TypeError(
                f"f: expected to run in float64, for the reference, got {error}; pass the tensors "
                "that it reads as arguments, or make them parameters or buffers"
            ) from error


def _distance(
    gradients: list[Tensor | None] | None, reference: list[Tensor | None] | None
) -> float:
    """The norm of the difference over the norm of the reference; NaN if either is missing."""
    if gradients is None or reference is None:
        return math.nan
    difference = norm = 0.0
    for gradient, wanted in zip(gradients, reference, strict=True):
        if gradient is not None and wanted is not None:  # else f does not read the leaf
            difference += float((gradient.double() - wanted.double()).square().sum())
            norm += float(wanted.double().square().sum())
    return math.sqrt(difference / norm) if norm else math.nan


def _leaf(value: Any) -> Any:
    """A differentiable copy of a floating-point tensor; anything else unchanged."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().clone().requires_grad_()
    return value


def _double(value: Any) -> Any:
    """A floating-point tensor converted to float64; anything else unchanged."""
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if floating else value
