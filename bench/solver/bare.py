"""The reversible solve by the ops alone: what is left of a step's time without the solver.

The least that a backward pass in Python does: f, its product by ``torch.autograd.grad``, one op per
half step. Nothing is checked, and f is what this benchmark has: of one tensor and x, without random
numbers and buffers, in the dtype of its state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import revdeq_kernels as rk
from bench.solver.methods import Method

FRAC_BITS = 20
"""What the solver chooses for a float32 state of small numbers."""


def bare_loop(f: nn.Module, z0: Tensor, x: Tensor, beta: float, steps: int) -> Tensor:
    """The solve with an exact state; its bits and its gradient's are those of `solve`."""
    z = BareReversible.apply(f, z0, x, beta, steps, *f.parameters())
    assert isinstance(z, Tensor)
    return z


class BareReversible(torch.autograd.Function):
    """The steps forward and in reverse, from y = z = z0."""

    @staticmethod
    def forward(
        ctx: Any, f: nn.Module, z0: Tensor, x: Tensor, beta: float, steps: int, *parameters: Tensor
    ) -> Tensor:
        """Keep the final pair and the digits."""
        flag = torch.zeros(1, dtype=torch.int32, device=z0.device)
        z = rk.quantize(z0, FRAC_BITS, flag=flag)
        y, read_y, read_z = z.clone(), torch.empty_like(z0), z0.clone()
        size = rk.digit_bytes(z0.numel(), beta)
        digits = torch.empty(2 * steps, size, dtype=torch.uint8, device=z0.device)
        planes = digits.unbind()
        for n in range(steps):
            first, second = planes[2 * n : 2 * n + 2]
            tie = n & 1
            rk.update_exact_(y, first, flag, f(read_z, x), beta, FRAC_BITS, tie, cast=read_y)
            rk.update_exact_(z, second, flag, f(read_y, x), beta, FRAC_BITS, 1 - tie, cast=read_z)
        ctx.save_for_backward(y, z, digits, z0, x, *parameters)
        ctx.f, ctx.beta, ctx.steps = f, beta, steps
        return read_z

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """Gradients of the parameters alone, which is what is asked for."""
        y, z, digits, z0, x, *parameters = ctx.saved_tensors
        planes, steps, (grad_z,) = digits.unbind(), ctx.steps, gradients
        grad_z, grad_y = grad_z.clone(), torch.zeros_like(grad_z)
        seed = rk.effective_beta(ctx.beta) * grad_z
        read_y, read_z = rk.dequantize(y, FRAC_BITS, x.dtype), torch.empty_like(grad_z)
        totals: list[Tensor] = []

        def product(at: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                read = at.detach().requires_grad_()
                found = ctx.f(read, x)
            vjp, *parts = torch.autograd.grad(found, (read, *parameters), seed)
            if not totals:
                totals.extend(part.clone() for part in parts)
            else:
                for total, part in zip(totals, parts, strict=True):
                    total.add_(part)
            return found.detach(), vjp

        for n in reversed(range(steps)):
            first, second = planes[2 * n : 2 * n + 2]
            step, tie = (ctx.beta, FRAC_BITS), n & 1
            f, vjp = product(read_y)
            rk.invert_z_adjoint_y_exact_(
                z, second, f, *step, 1 - tie, grad_y, vjp, seed, cast=read_z
            )
            f, vjp = product(read_z if n > 0 else z0)
            if n > 0:
                carried = grad_z, vjp, ctx.beta, seed
                rk.invert_y_adjoint_z_exact_(y, first, f, *step, tie, *carried, cast=read_y)
            else:
                rk.invert_y_adjoint_z0_exact_(y, first, f, *step, tie, grad_z, grad_y, vjp)
        return None, None, None, None, None, *totals


BARE = Method("ops by hand", "exact", loop=bare_loop)
