"""How strongly f contracts at an equilibrium: a training penalty, and a spectral radius estimate.

Both take f as ``solve`` does, at any z, usually the equilibrium of a solve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .evaluation.flat_function import FlatFunction, flatten


def jacobian_penalty(f: Callable[..., Any], z: Any, *args: Any, samples: int = 1) -> Tensor:
    """Hutchinson's estimate of the mean square of f's Jacobian; a differentiable penalty.

    Estimates `norm(J)**2 / n`, with J the Jacobian of f at z and n the number of elements of z, by
    the mean over `samples` of `norm(v J)**2 / n` with v standard normal. Added to a loss with a
    small factor, it keeps a cell contracting.

    Args:
        f: as in ``solve``.
        z: a tensor or a pytree of tensors, usually a detached equilibrium. If it requires grad, the
            penalty is differentiated with respect to it too.
        args: arguments of f.
        samples: number of random vectors v to average over.

    Returns:
        A 0-dim tensor in the dtype of z's first leaf. Costs one evaluation of f, and per sample one
        vector-Jacobian product whose graph is kept.

    Raises:
        ValueError: `samples` is less than 1, or f returned other shapes. TypeError: as ``solve``.

    Source: Bai, Koltun, Kolter, arXiv 2106.14342.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples: expected an integer of at least 1, got {samples!r}")
    with torch.enable_grad():
        leaves, out = _evaluated(f, z, args)
        count = sum(leaf.numel() for leaf in leaves)
        total = leaves[0].new_zeros(())
        for _ in range(samples):
            towards = [torch.randn_like(value) for value in out]
            products = _products(out, leaves, towards, create_graph=True)
            squares = [_wide(p).square().sum().to(total.dtype) for p in products]
            total = total + torch.stack(squares).sum()
        return total / (samples * max(count, 1))


@torch.no_grad()
def spectral_radius(
    f: Callable[..., Any], z: Any, *args: Any, iterations: int = 50, generator: Any = None
) -> Tensor:
    """An estimate of the largest absolute eigenvalue of f's Jacobian at z, by power iteration.

    Below 1, plain iteration converges to this equilibrium from nearby. Not differentiable.

    Args:
        f: as in ``solve``.
        z: as in ``jacobian_penalty``.
        args: arguments of f.
        iterations: number of products. The estimate is the geometric mean growth over the second
            half of them, which also works for a pair of complex eigenvalues.
        generator: a ``torch.Generator`` for the random first vector; by default torch's own.

    Returns:
        A 0-dim float64 tensor. 0 where the Jacobian maps the vector to zero.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 2:
        raise ValueError(f"iterations: expected an integer of at least 2, got {iterations!r}")
    with torch.enable_grad():
        leaves, out = _evaluated(f, pytree.tree_map(torch.detach, z), args)
    vector = [
        torch.randn(leaf.shape, dtype=leaf.dtype, device=leaf.device, generator=generator)
        for leaf in leaves
    ]
    growth = torch.zeros((), dtype=torch.float64, device=leaves[0].device)
    skipped = iterations // 2
    for i in range(iterations):
        norm = _norm(vector)
        vector = [(v / norm.clamp_min(1e-300)).to(v.dtype) for v in vector]
        towards = [v.to(value.dtype) for v, value in zip(vector, out, strict=True)]
        vector = _products(out, leaves, towards, create_graph=False)
        if i >= skipped:
            growth += _norm(vector).log()
    return (growth / (iterations - skipped)).exp()


def _evaluated(
    f: Callable[..., Any], z: Any, args: tuple[Any, ...]
) -> tuple[list[Tensor], list[Tensor]]:
    """Leaves of z that require grad, and those of f(z, *args)."""
    given, structure = flatten("z", z)
    mapping = FlatFunction(f, given, structure)
    leaves = [leaf if leaf.requires_grad else leaf.detach().requires_grad_() for leaf in given]
    return leaves, mapping(leaves, mapping.take_args(args))


def _products(
    out: Sequence[Tensor],
    leaves: Sequence[Tensor],
    towards: Sequence[Tensor],
    *,
    create_graph: bool,
) -> list[Tensor]:
    pairs = [(o, t) for o, t in zip(out, towards, strict=True) if o.requires_grad]
    if not pairs:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(
        [o for o, _ in pairs],
        leaves,
        [t for _, t in pairs],
        create_graph=create_graph,
        retain_graph=True,
        allow_unused=True,
    )
    return [
        torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)
    ]


def _wide(tensor: Tensor) -> Tensor:
    """In a dtype in which squares can be summed."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _norm(leaves: Sequence[Tensor]) -> Tensor:
    return torch.stack([leaf.double().square().sum() for leaf in leaves]).sum().sqrt()
