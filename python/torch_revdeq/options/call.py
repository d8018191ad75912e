"""Options resolved in a call of ``solve``, by the dtype and shapes of z0 and the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..evaluation.adjoint import ADJOINTS, Adjoint
from ..evaluation.effects.modules import is_sharded
from ..evaluation.flat_function import flatten
from ..evaluation.places import outline
from ..iteration.watching import Watch
from ..state.formats import EXACT, FORMATS, Format, State
from .reading import adjoint_of, bits_of_a_float, check_adjoint
from .table import TABLE
from .values import UNFIT, check_mask, shown


def chosen_adjoint(adjoint: Any, modules: Sequence[nn.Module], given: dict[str, Any]) -> Adjoint:
    """The adjoint; "auto" is resolved by the modules in f."""
    if adjoint != "auto":
        return adjoint_of(adjoint)
    if not any(map(is_sharded, modules)):
        return ADJOINTS["reversible"]
    check_adjoint(ADJOINTS["hooks"], given)
    return ADJOINTS["hooks"]


def adjoint_of_computed(chosen: Adjoint, given: dict[str, Any], *, exact: bool) -> Adjoint | None:
    """What "auto" chooses if f reads a tensor computed outside f; None if it cannot."""
    beta, hooks = given["beta"], ADJOINTS["hooks"]
    learned = isinstance(beta, Tensor) and beta.requires_grad
    if given["adjoint"] != "auto" or chosen.name != "reversible" or (learned and not exact):
        return None
    try:
        check_adjoint(hooks, given)
    except ValueError:  # an option that "hooks" does not support
        return None
    return hooks


def drawn(max_steps: int | Callable[[], Any]) -> int:
    """The number of steps; a function is called."""
    if not callable(max_steps):
        return max_steps
    steps, option = max_steps(), TABLE["max_steps"]
    result = UNFIT if callable(steps) else option.reader(steps)
    if result is UNFIT:
        raise option.refusal(steps, "an integer of at least 1 from the function")
    return result


def format_of(state: State, leaves: Sequence[Tensor]) -> Format:
    """The format of the state for the option `state` and the leaves of z0."""
    if state not in ("auto", "exact"):
        return FORMATS[state]
    if not any(leaf.dtype == torch.float64 for leaf in leaves):
        return EXACT
    if state == "exact":
        raise TypeError(
            "state: expected z0 in float32 or less for 'exact', got float64; choose "
            "state=torch.float64"
        )
    return FORMATS[torch.float64]


def fractional_bits(frac_bits: int | str, *, exact: bool) -> int | None:
    """The fractional bits of an exact state; None if they depend on the data."""
    if isinstance(frac_bits, str):
        return None
    if not exact:
        raise bits_of_a_float(frac_bits)
    return frac_bits


def second_start(y0: Any, z0: list[Tensor], structure: Any) -> list[Tensor] | None:
    """The leaves of y0, checked to be like those of z0; None without a y0."""
    if y0 is None:
        return None
    leaves, other = flatten("y0", y0)
    if other != structure:
        raise TypeError(
            f"y0: expected the structure of z0, {outline(structure)}, got {outline(other)}; pass "
            "the same, or leave y0 out, which is then z0"
        )
    for leaf, like in zip(leaves, z0, strict=True):
        if (leaf.shape, leaf.dtype, leaf.device) != (like.shape, like.dtype, like.device):
            raise ValueError(
                f"y0: expected leaves like those of z0, {tuple(like.shape)} {like.dtype} on "
                f"{like.device}, got {tuple(leaf.shape)} {leaf.dtype} on {leaf.device}; pass the "
                "same, or leave y0 out, which is then z0"
            )
    return leaves


def masks(mask: Any, z0: Sequence[Tensor], structure: Any) -> list[Tensor | None] | None:
    """For each leaf of z0, which positions count; None if all do."""
    if mask is None:
        return None
    if isinstance(mask, Tensor):
        return [_mask_of(mask, leaf) for leaf in z0]
    leaves, other = pytree.tree_flatten(mask)
    if other != structure:
        raise TypeError(
            f"residual_mask: expected a bool tensor, or a pytree of them like z0, got "
            f"{shown(mask)}; pass one tensor for all leaves, or one (or None) for each"
        )
    return [None if m is None else _mask_of(m, leaf) for m, leaf in zip(leaves, z0, strict=True)]


def _mask_of(mask: Any, leaf: Tensor) -> Tensor:
    check_mask(mask)
    if mask.shape != leaf.shape[: mask.dim()]:
        suggested = tuple(leaf.shape[: min(2, leaf.dim() - 1)])
        raise ValueError(
            f"residual_mask: expected the shape of leading dimensions of a leaf of shape "
            f"{tuple(leaf.shape)}, got {tuple(mask.shape)}; pass one of shape "
            f"{suggested} for example, or a pytree of masks like z0"
        )
    if mask.device != leaf.device:
        raise ValueError(
            f"residual_mask: expected on the device of z0, {leaf.device}, got {mask.device}; "
            "move it there"
        )
    return mask


def watch_of(
    given: dict[str, Any],
    unflatten: Callable[[Sequence[Tensor]], Any],
    device: torch.device,
    *,
    transformed: bool,
) -> Watch | None:
    """The ``Watch`` for `trace` and `on_step`, if any; RuntimeError in a torch.func transform."""
    trace, on_step = given["trace"], given["on_step"]
    if on_step is None:
        return Watch(trace, None, unflatten, device) if trace else None
    if transformed:
        raise RuntimeError(
            f"on_step: expected None inside a transform of torch.func or in forward mode, got "
            f"{shown(on_step)}, which would receive tensors of the transform; leave on_step out "
            "there"
        )
    return Watch(trace, on_step, unflatten, device)
