"""For tests of models built on ``solve``: is f differentiated exactly, and does it repeat?"""

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
    """Compare a solve and its gradients with those of stored activations, ``adjoint="backprop"``.

    For an exact state every bit must agree: of z, y, what `save` kept and aux, and of the gradients
    with respect to z0, y0, the tensors in `args` that require grad, and every leaf that f reads
    (its parameters, what it closes over). Gradients of 16-bit parameters are compared as
    ``accumulate="autograd"`` adds them up, unless `options` say otherwise. For a float state, they
    may differ by `rtol`.

    Args:
        f: as in ``solve``. Random numbers are drawn alike in both solves.
        z0: as in ``solve``; a gradient with respect to it is taken in any case.
        args: as in ``solve``.
        rtol: the largest difference allowed, relative to the largest element of the gradient. None:
            0 for an exact state, 1e-3 for a float one.
        options: those of ``solve``, such as beta, max_steps, state, or an adjoint to compare.

    Returns:
        The statistics of the solve that walked back: ``adjoint`` says how, "reversible" or, for an
        f that "auto" has "hooks" for, that.

    Raises:
        AssertionError: names the first tensor that differs, and by how much.

    Both solves evaluate the same f. What torch itself computes wrong in 16 bits they share:
    ``assert_close_to_float32`` sees that.
    """
    options = {"accumulate": "autograd", "adjoint": "auto", **options}
    z0, args, y0 = _leaves_of_their_own((z0, args, options.pop("y0", None)))
    z0 = pytree.tree_map(lambda leaf: leaf.detach().requires_grad_(), z0)
    random = RngReplay(flatten("z0", z0)[0][0].device, "auto")
    found: list[dict[str, Tensor | None]] = []
    stats: Stats | None = None
    leaves: dict[str, Tensor] = {}
    walked = {name: options.pop(name) for name in _WALKED if name in options}
    since, shared = now(), False  # whether f reads what was computed outside, with its graph
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

    Some of torch's layers sum their parameters' gradients in 16 bits, and are far off without a
    word: LayerNorm on a CPU for example. In the second solve z0, `args`, and the parameters and
    buffers of f's modules are float32 copies of the 16-bit numbers.

    Args:
        f: as in ``solve``. What it reads must be `args`, or parameters or buffers of modules.
            Random numbers are drawn alike in both solves, as far as torch draws the same ones in
            16 bits: masks of dropout, not numbers such as those of ``torch.randn_like``.
        z0: as in ``solve``, in 16 bits, and so are the `args`.
        args: as in ``solve``.
        rtol: the norm of a difference, relative to that of the gradient, or to 2^-8 of the largest
            of their norms if that is more: a gradient that would be 0 is made of roundings. 0.1 is
            that of 25 roundings to bfloat16, by 2^-8 each and all in one direction.
        options: those of ``solve``.

    Returns:
        The relative differences, by the names of what the gradients are of.

    Raises:
        AssertionError: names the gradient that is farthest off.
        TypeError: f reads a 16-bit tensor of another kind.
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
                f"f: expected to read parameters and buffers of modules, and args, got {name} of "
                f"{grad.dtype}; pass it in args, or make it a parameter"
            )
    if narrow.keys() != wide.keys():
        raise AssertionError(
            f"gradients: expected those of {', '.join(wide)} as in float32, got {', '.join(narrow)}"
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
            f"the gradient of {worst}: expected that of float32 to within {rtol:g} of its norm, "
            f"got a difference of {off[worst]:.3g}; look for a sum that the layer takes in 16 bits"
        )
    return off


_16_BITS = (torch.bfloat16, torch.float16)


def _float32_of(value: Any) -> Any:
    """Of a 16-bit tensor its numbers in float32, of anything else itself."""
    return value.float() if isinstance(value, Tensor) and value.dtype in _16_BITS else value


def _gradients(
    f: Callable[..., Any],
    z0: Any,
    args: tuple[Any, ...],
    options: dict[str, Any],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Those of a positive random projection of z, with respect to all leaves that have one."""
    z0, args = _leaves_of_their_own((z0, args))
    z0 = pytree.tree_map(lambda leaf: leaf.requires_grad_(), z0)
    with buffers_kept(modules_of(f)), torch.enable_grad():
        outputs = pytree.tree_leaves(solve(f, z0, *args, **options).z)
        leaves = _named(leaves_below(outputs), f, z0, None, args)
        # All of one sign: sums grow, as in a mean over rows, until they do not in 16 bits.
        towards = [torch.rand(o.shape, generator=generator).bfloat16().to(o) for o in outputs]
        # Both solves may lead into a graph outside, that of what f closes over.
        found = torch.autograd.grad(
            outputs, list(leaves.values()), towards, retain_graph=True, allow_unused=True
        )
    return {n: g for n, g in zip(leaves, found, strict=True) if g is not None}


_WALKED = ("adjoint", "store_last", "memory_budget")
"""Options that change how the gradient is computed, and nothing else."""


def _leaves_of_their_own(values: Any) -> Any:
    """The same tensors, as leaves of this test."""

    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().clone().requires_grad_(value.requires_grad)

    return pytree.tree_map(leaf, values)


def _named(
    leaves: Sequence[Tensor], f: Callable[..., Any], z0: Any, y0: Any, args: Any
) -> dict[str, Tensor]:
    """Names for the leaves that the gradient is taken of."""
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
    """The outputs, and the gradients of a random projection of them. `keep`: with the graph."""
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
                raise AssertionError(f"{name}: {missing} has none, the other does")
            continue
        a, b = (t.detach().to_dense() if t.is_sparse else t.detach() for t in (want, have))
        if torch.equal(a, b) or not a.numel():
            continue
        difference = float((a.double() - b.double()).abs().max())
        largest = float(a.double().abs().max())
        if not difference <= rtol * largest:
            raise AssertionError(
                f"{name}: expected that of stored activations to within {rtol:g} of its largest "
                f"element, {largest:.3g}, got a difference of {difference:.3g}"
            )
