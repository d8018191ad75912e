"""Launches of the equilibrium cell's kernels; the arguments are those of ``composite.py``.

The kernels are those of a module, ``linear_cell.py`` or ``gluon_cell.py``, which take the same
arguments. Forward and back a cell is taken apart alike (their CONFIGURATIONS): an exact state would
not come back otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton import knobs

from revdeq_kernels import composite
from revdeq_kernels.conditions import BF16, F16, F32
from revdeq_kernels.fixed_point import contraction, effective_beta

from . import cell_step
from . import linear_cell as kernels
from .half_step import STEP as EXACT_STEP
from .leaves import exact_step, launch

TYPES = {BF16: "bf16", F16: "fp16", F32: "fp32"}

ACTS = {
    "tanh": cell_step.TANH,
    "relu": cell_step.RELU,
    "gelu": cell_step.GELU,
    "silu": cell_step.SILU,
}

INTERPRETED_PROGRAMS = 2
"""Programs in Triton's interpreter: so few that each has more than one tile to take."""


class Launcher:
    """Launches the kernels of a module; what it offers is what ``composite.py`` does."""

    def __init__(self, kernels: Any) -> None:
        self.kernels = kernels

    def digits_shape(self, z0: Tensor, beta: float, steps: int) -> tuple[int, ...]:
        """A byte of each element for as many half steps as fit into one, one after the other."""
        return -(-2 * steps // contraction(beta).digits_per_byte), *z0.shape

    def forward(
        self,
        u: Tensor,
        w: Tensor,
        z0: Tensor,
        beta: float,
        steps: int,
        act: str,
        state: str,
        frac_bits: int,
    ) -> tuple[Tensor, ...]:
        """See ``linear_cell.linear_cell_forward``."""
        exact = state == "exact"
        y, z = torch.empty_like(z0), torch.empty_like(z0)
        flag = torch.zeros(1, dtype=torch.int32, device=z0.device)
        fixed = z0.new_empty((2, *z0.shape) if exact else 0, dtype=torch.int32)
        digits = z0.new_empty(self.digits_shape(z0, beta, steps) if exact else 0, dtype=torch.uint8)
        if z0.numel() > 0:
            written = (fixed, digits, flag) if exact else (None, None, None)
            numbers, constants = self._step(w, beta, act, exact, frac_bits)
            args = (u, w, z0, y, z, *written, z0.shape[0], steps, *numbers)
            launch(self.kernels.forward_kernel, self._programs(z0, w), z0, *args, **constants)
        return y, z, fixed, digits, flag

    def backward(
        self,
        grad_y: Tensor,
        grad_z: Tensor,
        y: Tensor,
        z: Tensor,
        digits: Tensor,
        u: Tensor,
        w: Tensor,
        z0: Tensor,
        beta: float,
        steps: int,
        act: str,
        state: str,
        frac_bits: int,
    ) -> tuple[Tensor, ...]:
        """See ``linear_cell.linear_cell_backward``."""
        grad_u, grad_z0 = torch.empty_like(u), torch.empty_like(z0)
        grad_w = torch.zeros_like(w, dtype=F32)
        distance, lost = z0.new_zeros(1), z0.new_zeros(1, dtype=torch.int32)
        if z0.numel() > 0:
            programs = self._programs(z0, w)
            of_programs = (
                grad_w.new_empty(programs, *w.shape),
                distance.new_empty(programs),
                lost.new_empty(programs),
            )
            numbers, constants = self._step(w, beta, act, state == "exact", frac_bits)
            read = (grad_y, grad_z, y, z, digits if state == "exact" else None, u, w, z0)
            args = (*read, grad_u, grad_z0, *of_programs, z0.shape[0], steps, *numbers)
            launch(self.kernels.backward_kernel, programs, z0, *args, **constants)
            args = (*of_programs, grad_w, distance, lost, programs)
            block = kernels.SUM_BLOCK.value
            blocks = -(-w.numel() // block)
            sizes = {"SIZE": w.numel(), "BLOCK": block, "INTERPRETED": constants["INTERPRETED"]}
            launch(kernels.sum_programs, blocks, z0, *args, **sizes)
        return grad_u, grad_w, grad_z0, distance, lost

    def _step(
        self, w: Tensor, beta: float, act: str, exact: bool, frac_bits: int
    ) -> tuple[tuple[float | int, ...], dict[str, Any]]:
        """The numbers in the order of STEP, and the constants of a kernel."""
        numbers: dict[str, float | int] = dict.fromkeys(kernels.STEP, 0)
        numbers |= {"keep": 1.0 - beta, "beta": beta, "scale": 1.0, "unscale": 1.0}
        form, packed = 0, 1
        if exact:
            form, packed, step = exact_step(beta, frac_bits, 0)
            numbers |= dict(zip(EXACT_STEP, step, strict=True))
            numbers |= {"keep": contraction(beta).one_minus_beta, "beta": effective_beta(beta)}
        tile, warps, _ = self.configuration(w)
        constants = {
            "ACT": ACTS[act].value,
            "EXACT": exact,
            "FORM": form,
            "DIGITS_PER_BYTE": packed,
            "FEATURES": w.shape[0],
            "TILE": tile,
            "INTERPRETED": bool(knobs.runtime.interpret),
        }
        options = {"num_warps": warps, "num_stages": 1}
        return tuple(numbers[name] for name in kernels.STEP), constants | options

    def configuration(self, w: Tensor) -> kernels.Configuration:
        """How a cell with such a W is taken apart."""
        return self.kernels.CONFIGURATIONS[TYPES[w.dtype]][w.shape[0]]

    def _programs(self, z0: Tensor, w: Tensor) -> int:
        """As many as the device holds at once, which take tile after tile; no more than tiles."""
        tile, _, programs = self.configuration(w)
        tiles = -(-z0.shape[0] // tile)
        if not z0.is_cuda:
            return min(tiles, INTERPRETED_PROGRAMS)
        processors = torch.cuda.get_device_properties(z0.device).multi_processor_count
        return min(tiles, processors * programs)

    # ---- the first use ----

    def differs(
        self, device: torch.device, w_dtype: torch.dtype, features: int, act: str, state: str
    ) -> str:
        """What is wrong with the kernels of such cells; nothing if they do as they should.

        Forward and back on random numbers, with whole tiles and part of one: an exact state has to
        come back bit for bit, and results have to be those of the composite up to roundings. A sum
        in another order moves a number of the exact state by a unit of its grid, 2^-16, or lets s
        fall to the other side of a rounding, one unit of w's dtype; of a cell that contracts no
        norm of a result moves by a whole unit then.
        """
        generator = torch.Generator().manual_seed(features)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device)

        rows = 5 * self.kernels.CONFIGURATIONS[TYPES[w_dtype]][features].tile + 3
        u, w = normal(rows, features), normal(features, features) * 0.4 / features**0.5
        u, w, z0 = u.to(w_dtype), w.to(w_dtype), normal(rows, features)
        grads = (normal(rows, features), normal(rows, features))
        precise = torch.get_float32_matmul_precision() == "highest"  # of the composite on a GPU
        unit = torch.finfo(w_dtype).eps if w_dtype != F32 else 2.0**-15 if precise else 2.0**-9
        for beta in (0.5, 0.8, 0.7312) if state == "exact" else (0.5,):
            numbers: Any = (beta, 2, act, state, 16)
            results = []
            for run, back_again in (
                (composite.forward, composite.backward),
                (self.forward, self.backward),
            ):
                y, z, fixed, digits, flag = run(u, w, z0, *numbers)
                end_y, end_z = fixed if state == "exact" else (y, z)
                back = back_again(*grads, end_y, end_z, digits, u, w, z0, *numbers)
                if flag.item() or back[4].item():
                    return f"with beta {beta} {back[4].item()} rows did not come back"
                results.append([y, z, *back[:3]])
            for want, got in zip(*results, strict=True):
                off = float((want.float() - got.float()).norm() / want.float().norm())
                if not off <= unit:
                    return f"with beta {beta} results are {off:.2g} off, {unit:.2g} are explained"
        return ""
