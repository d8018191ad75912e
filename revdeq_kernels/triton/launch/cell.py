"""Launches of the equilibrium cell's kernels; arguments as in ``ops/cell/reference.py``.

The kernels come from one of two modules with the same interface, ``kernels/cell.py`` or
``gluon_cell.py``. Forward and backward pass must divide a cell among programs in the same way
(their CONFIGURATIONS); otherwise an exact state would not be reconstructed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from revdeq_kernels.core.checks import BF16, F16, F32
from revdeq_kernels.dtypes import TRITON
from revdeq_kernels.exact_numbers import contraction, effective_beta
from revdeq_kernels.ops.cell import reference as composite
from revdeq_kernels.ops.cell.arguments import Ends, Gradients, Inputs, Numbers, Solved

from ..device import activations
from ..device import cell as device
from ..kernels import cell as kernels
from ..kernels.configuration import Configuration
from .leaves import as_scalars, launch, step_numbers

TYPES = {dtype: TRITON[str(dtype).removeprefix("torch.")] for dtype in (BF16, F16, F32)}

ACTS = {
    "tanh": activations.TANH,
    "relu": activations.RELU,
    "gelu": activations.GELU,
    "silu": activations.SILU,
}

INTERPRETED_PROGRAMS = 2
"""Programs in Triton's interpreter: few, so that each processes more than one tile."""


class Launcher:
    """Launches the kernels of a module, with the interface of ``ops/cell/reference.py``."""

    def __init__(self, kernels: Any) -> None:
        self.kernels = kernels

    def digits_shape(self, z0: Tensor, numbers: Numbers) -> tuple[int, ...]:
        """One byte per element for as many consecutive half steps as have digits in it."""
        return -(-2 * numbers.steps // contraction(numbers.beta).digits_per_byte), *z0.shape

    def forward(self, inputs: Inputs, numbers: Numbers) -> Solved:
        """See ``linear_cell.linear_cell_forward``."""
        z0, exact = inputs.z0, numbers.exact
        rows = z0.shape[0] if numbers.halting else 0
        new = z0.new_zeros if numbers.halting else z0.new_empty  # some rows may not be written
        out = Solved(
            y=torch.empty_like(z0),
            z=torch.empty_like(z0),
            fixed=z0.new_empty((2, *z0.shape) if exact else 0, dtype=torch.int32),
            digits=new(self.digits_shape(z0, numbers) if exact else 0, dtype=torch.uint8),
            flag=torch.zeros(1, dtype=torch.int32, device=z0.device),
            taken=z0.new_empty(rows, dtype=torch.int32),
            residual=z0.new_empty(rows),
        )
        if z0.numel() > 0:
            written = out
            if not exact:
                written = written._replace(fixed=None, digits=None, flag=None)
            if not numbers.halting:
                written = written._replace(taken=None, residual=None)
            step, constants = self._step(inputs.w, numbers, back=False)
            args = (inputs, written, z0.shape[0], numbers.steps, numbers.tol, *step)
            programs = self._programs(inputs, numbers, back=False)
            launch(self.kernels.forward_kernel, programs, z0, *args, **constants)
        return out

    def backward(self, ends: Ends, inputs: Inputs, numbers: Numbers) -> Gradients:
        """See ``linear_cell.linear_cell_backward``."""
        u, w, z0 = inputs
        out = Gradients(
            grad_u=torch.empty_like(u),
            grad_w=torch.zeros_like(w, dtype=F32),
            grad_z0=torch.empty_like(z0),
            distance=z0.new_zeros(1),
            lost=z0.new_zeros(1, dtype=torch.int32),
        )
        if z0.numel() > 0:
            programs = self._programs(inputs, numbers, back=True)
            of_programs = (
                z0.new_empty(programs, *w.shape),
                z0.new_empty(programs),
                z0.new_empty(programs, dtype=torch.int32),
            )
            step, constants = self._step(w, numbers, back=True)
            read = ends if numbers.exact else ends._replace(digits=None)
            if not numbers.halting:
                read = read._replace(taken=None)
            grads = (out.grad_u, out.grad_z0)
            args = (read, inputs, grads, of_programs, z0.shape[0], numbers.steps, *step)
            launch(self.kernels.backward_kernel, programs, z0, *args, **constants)
            args = (of_programs, (out.grad_w, out.distance, out.lost), programs)
            block = kernels.SUM_BLOCK.value
            blocks = -(-w.numel() // block)
            launch(kernels.sum_programs, blocks, z0, *args, SIZE=w.numel(), BLOCK=block)
        return out

    def _step(self, w: Tensor, given: Numbers, back: bool) -> tuple[device.Step, dict[str, Any]]:
        """The numbers and constants of a kernel."""
        beta = given.beta
        if given.exact:
            form, packed, exact = step_numbers(beta, given.frac_bits, 0)
            step = device.Step(contraction(beta).one_minus_beta, effective_beta(beta), *exact)
        else:
            numbers = as_scalars(F32, 1.0 - beta, beta)
            form, packed, step = 0, 1, device.Step(*numbers, 1.0, 1.0, *[0] * 8)
        configuration = self.configuration(w)
        cell = device.Cell(
            *(
                ACTS[given.act].value,
                given.exact,
                form,
                packed,
                given.exact and beta > 1.0,
                given.halting,
            ),
            *(w.shape[0], configuration.tile),
        )
        return step, {"CELL": cell} | configuration.options(given.exact, back)

    def configuration(self, w: Tensor) -> Configuration:
        """How a cell with this W is divided among programs."""
        return self.kernels.CONFIGURATIONS[TYPES[w.dtype]][w.shape[0]]

    def _programs(self, inputs: Inputs, numbers: Numbers, back: bool) -> int:
        """As many programs as fit on the device, at most one per tile; each loops over tiles."""
        z0 = inputs.z0
        configuration = self.configuration(inputs.w)
        tiles = -(-z0.shape[0] // configuration.tile)
        if not z0.is_cuda:
            return min(tiles, INTERPRETED_PROGRAMS)
        processors = torch.cuda.get_device_properties(z0.device).multi_processor_count
        return min(tiles, processors * configuration.programs(numbers.exact, back))

    # ---- the first use ----

    def differs(
        self,
        device: torch.device,
        w_dtype: torch.dtype,
        features: int,
        act: str,
        state: str,
        halting: bool,
    ) -> str:
        """What is wrong with the kernels of such cells; empty if they pass the check.

        Runs both passes on random numbers, with whole tiles and a partial one. An exact state must
        be reconstructed bit for bit, and results must match the composite up to rounding errors.
        Another order of summation can move a number of the exact state by one unit of its grid,
        2^-16, or round s to a neighboring number of w's dtype; in a contracting cell, this changes
        no norm of a result by a whole unit. If rows halt, every second row does so after one step:
        it starts at its equilibrium, 0.
        """
        generator = torch.Generator().manual_seed(features)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device)

        rows = 5 * self.kernels.CONFIGURATIONS[TYPES[w_dtype]][features].tile + 3
        u, w = normal(rows, features), normal(features, features) * 0.4 / features**0.5
        begin, tol = normal(rows, features), 0.0
        if halting:
            u[::2], begin[::2], tol = 0.0, 0.0, 1e-6
        inputs = Inputs(u.to(w_dtype), w.to(w_dtype), begin)
        grads = (normal(rows, features), normal(rows, features))
        precise = torch.get_float32_matmul_precision() == "highest"  # for the composite
        unit = torch.finfo(w_dtype).eps if w_dtype != F32 else 2.0**-15 if precise else 2.0**-9
        for beta in (0.5, 0.8, 0.7312) if state == "exact" else (0.5,):
            numbers = Numbers(beta, 2, act, state, 16, tol)
            results = []
            for run, back_again in (
                (composite.forward, composite.backward),
                (self.forward, self.backward),
            ):
                out = run(inputs, numbers)
                back = back_again(out.ends(*grads, numbers), inputs, numbers)
                if out.flag.item() or back.lost.item():
                    return f"with beta {beta}, {back.lost.item()} rows were not reconstructed"
                found = (out.y, out.z, *back[:3], out.taken)
                results.append([t.float() for t in found if t.numel() > 0])
            for want, got in zip(*results, strict=True):
                off = float((want - got).norm() / want.norm())
                if not off <= unit:
                    return f"with beta {beta}, results are {off:.2g} off (tolerance {unit:.2g})"
        return ""
