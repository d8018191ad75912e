"""Test helpers for models built on ``solve``: exact gradients, and an f that is repeatable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .evaluation.closure import ends_of, leaves_below, now
from .evaluation.effects.converted import converted
from .evaluation.effects.modules import modules_of
from .evaluation.effects.written import buffers_kept
from .evaluation.flat_function import flatten
from .evaluation.repeatable import assert_repeatable
from .evaluation.rng import RngReplay
from .solution import Stats
from .solver import solve

__all__ = ["assert_close_to_float32", "assert_exact_gradients", "assert_repeatable"]


def assert_exact_gradients(
    f: Callable[..., Any], z0: Any, *args: Any, rtol: float | None = None, **options: Any
) -> Stats:
    """Compare a solve and its gradients with stored activations, ``adjoint="backprop"``.

    With an exact state, z, y, the saved states, aux, and the gradients with respect to z0, y0, the
    tensors in `args` that require grad and every leaf that f reads (parameters, tensors it closes
    over) must be bitwise equal. Gradients of 16-bit parameters are summed as with
    ``accumulate="autograd"``, unless `options` say otherwise. With a float state, they may differ
    by `rtol`.

    Args:
        f: as in ``solve``. Both solves draw the same random numbers.
        z0: as in ``solve``; its gradient is always computed.
        args: as in ``solve``.
        rtol: the largest difference allowed, relative to the largest element of the gradient. None:
            0 for an exact state, 1e-3 for a float one.
        options: options of ``solve``, such as beta, max_steps, state, or an adjoint to compare.

    Returns:
        The statistics of the solve under test; its ``adjoint`` is the one that "auto" chose, unless
        `options` name one.

    Raises:
        AssertionError: names the first tensor that differs, and by how much.

    Both solves evaluate the same f, so they share any error that torch itself makes in 16 bits:
    ``assert_close_to_float32`` finds those.
    """
    options = {"accumulate": "autograd", "adjoint": "auto", **options}
    z0, args, y0 = _leaves_of_their_own((z0, args, options.pop("y0", None)))
    z0 = pytree.tree_map(lambda leaf: leaf.detach().requires_grad_(), z0)
    random = RngReplay(flatten("z0", z0)[0][0].device, "auto")
    found: list[dict[str, Tensor | None]] = []
    stats: Stats | None = None
    leaves: dict[str, Tensor] = {}
    walked = {name: options.pop(name) for name in _WALKED if name in options}
    since, shared = now(), False  # whether f reads a tensor computed outside, with its graph
    extra: dict[str, Any]
    for extra in ({"adjoint": "backprop"}, walked):
        random.restore(random.first)
        with buffers_kept(modules_of(f)), torch.enable_grad():
            solution = solve(f, z0, *args, y0=y0, **options, **extra)
            parts = (solution.z, solution.y, solution.saved, solution.aux)
            outputs = [leaf for leaf in pytree.tree_leaves(parts) if isinstance(leaf, Tensor)]
            if not leaves:
                leaves = _named(leaves_below(outputs), f, z0, y0, args)
                shared = ends_of(outputs, since)[1] is not None
            found.append(_observed(outputs, leaves, keep=shared))
        stats = solution.stats
    assert stats is not None
    if rtol is None:
        rtol = 0.0 if stats.state == "exact" else 1e-3
    _compare(found[0], found[1], rtol)
    return stats


def assert_close_to_float32(
    f: Callable[..., Any], z0: Any, *args: Any, rtol: float = 0.1, **options: Any
) -> dict[str, float]:
    """Compare the gradients of a solve in 16 bits with those of the same solve in float32.

    Some torch layers sum their parameters' gradients in 16 bits, with large errors and no warning:
    LayerNorm on a CPU, for example. In the second solve z0, `args`, and the parameters and buffers
    of f's modules are float32 copies of the 16-bit values.

    Args:
        f: as in ``solve``. It may read only `args`, and parameters and buffers of modules. Both
            solves draw the same random numbers as far as torch does so in 16 bits: dropout masks,
            but not the numbers of ``torch.randn_like``.
        z0: as in ``solve``, in 16 bits.
        args: as in ``solve``, in 16 bits.
        rtol: the largest norm of a difference, relative to the norm of the gradient, or to 2^-8 of
            the largest gradient norm if that is more (a gradient that should be 0 consists of
            rounding errors). 0.1 allows 25 roundings to bfloat16, of 2^-8 each, in one direction.
        options: options of ``solve``.

    Returns:
        The relative differences, by the name of the tensor that the gradient belongs to.

    Raises:
        AssertionError: names the gradient with the largest difference.
        TypeError: f reads any other 16-bit tensor.
    """
    random = RngReplay(flatten("z0", z0)[0][0].device, "auto")
    generator = torch.Generator().manual_seed(0)
    narrow = _gradients(f, z0, args, options, generator)
    z0, args, options = pytree.tree_map(_float32_of, (z0, args, options))
    random.restore(random.first)
    with converted(modules_of(f), _float32_of):
        wide = _gradients(f, z0, args, options, generator.manual_seed(0))
    for name, grad in wide.items():
        if grad.dtype in _16_BITS:
            raise TypeError(
                f"f: expected to read parameters and buffers of modules, and args, got {name} in "
                f"{grad.dtype}; pass it in args, or make it a parameter"
            )
    if narrow.keys() != wide.keys():
        raise AssertionError(
            f"gradients: expected those of {', '.join(wide)}, as in float32, got "
            f"{', '.join(narrow)}"
        )
    least = 2.0**-8 * max((float(grad.norm()) for grad in wide.values()), default=0.0)
    off = {
        name: float((narrow[name].double() - grad.double()).norm())
        / max(float(grad.double().norm()), least, 1e-30)
        for name, grad in wide.items()
    }
    worst = max(off, key=lambda name: math.inf if math.isnan(off[name]) else off[name], default="")
    if worst and not off[worst] <= rtol:
        raise AssertionError(
            f"the gradient of {worst}: expected the float32 gradient to within {rtol:g} of its "
            f"norm, got a difference of {off[worst]:.3g}; look for a sum that the layer computes "
            "in 16 bits"
        )
    return off


_16_BITS = (torch.bfloat16, torch.float16)


def _float32_of(value: Any) -> Any:
    """A 16-bit tensor converted to float32; anything else unchanged."""
    return value.float() if isinstance(value, Tensor) and value.dtype in _16_BITS else value


def _gradients(
    f: Callable[..., Any],
    z0: Any,
    args: tuple[Any, ...],
    options: dict[str, Any],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Gradients of a positive random projection of z, for all leaves that have one."""
    z0, args = _leaves_of_their_own((z0, args))
    z0 = pytree.tree_map(lambda leaf: leaf.requires_grad_(), z0)
    with buffers_kept(modules_of(f)), torch.enable_grad():
        outputs = pytree.tree_leaves(solve(f, z0, *args, **options).z)
        leaves = _named(leaves_below(outputs), f, z0, None, args)
        # All of one sign, so that sums keep growing as in a mean over rows; in 16 bits they stop.
        towards = [torch.rand(o.shape, generator=generator).bfloat16().to(o) for o in outputs]
        # Both solves may lead into one outer graph, of a tensor that f closes over.
        found = torch.autograd.grad(
            outputs, list(leaves.values()), towards, retain_graph=True, allow_unused=True
        )
    return {n: g for n, g in zip(leaves, found, strict=True) if g is not None}


_WALKED = ("adjoint", "store_last", "memory_budget")
"""Options that change only how the gradient is computed."""


def _leaves_of_their_own(values: Any) -> Any:
    """Copies of the tensors, as leaves."""

    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().clone().requires_grad_(value.requires_grad)

    return pytree.tree_map(leaf, values)


def _named(
    leaves: Sequence[Tensor], f: Callable[..., Any], z0: Any, y0: Any, args: Any
) -> dict[str, Tensor]:
    """Names for the leaves to differentiate with respect to."""
    names: dict[int, str] = {}
    for kind, value in (("args", args), ("y0", y0), ("z0", z0)):
        names |= {
            id(t): f"{kind}{i}" for i, t in enumerate(pytree.tree_leaves(value)) if t is not None
        }
    for module in reversed(modules_of(f)):
        names |= {id(p): f"{name}" for name, p in module.named_parameters()}
    named: dict[str, Tensor] = {}
    for i, leaf in enumerate(leaves):
        name = names.get(id(leaf), f"leaf {i} of f")
        named[name if name not in named else f"{name} ({i})"] = leaf
    return named


def _observed(
    outputs: list[Tensor], leaves: dict[str, Tensor], *, keep: bool
) -> dict[str, Tensor | None]:
    """The outputs, and the gradients of a random projection. `keep`: retain the graph."""
    generator = torch.Generator().manual_seed(0)
    towards = [
        torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs
    ]
    pairs = [(o, t) for o, t in zip(outputs, towards, strict=True) if o.requires_grad]
    grads = torch.autograd.grad(
        [o for o, _ in pairs],
        list(leaves.values()),
        [t for _, t in pairs],
        retain_graph=keep,
        allow_unused=True,
    )
    observed: dict[str, Tensor | None] = {f"output {i}": o for i, o in enumerate(outputs)}
    return observed | {f"the gradient of {n}": g for n, g in zip(leaves, grads, strict=True)}


def _compare(
    expected: dict[str, Tensor | None], got: dict[str, Tensor | None], rtol: float
) -> None:
    for name, want in expected.items():
        have = got[name]
        if want is None or have is None:
            if want is not have:
                missing = "backprop" if want is None else "the solve"
                raise AssertionError(f"{name}: {missing} has none, but the other solve has one")
            continue
        a, b = (t.detach().to_dense() if t.is_sparse else t.detach() for t in (want, have))
        if torch.equal(a, b) or not a.numel():
            continue
        difference = float((a.double() - b.double()).abs().max())
        largest = float(a.double().abs().max())
        if not difference <= rtol * largest:
            raise AssertionError(
                f"{name}: expected the value of stored activations to within {rtol:g} of its "
                f"largest element, {largest:.3g}, got a difference of {difference:.3g}"
            )
