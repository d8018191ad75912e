"""When one op can run all steps of a ``LinearCell``'s solve."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from ..runtime.transforms import inside_transform
from .linear import LinearCell


def like_w(cell: LinearCell) -> Tensor:
    """A tensor with W's dtype, device and features. W itself may be recomputed at each access."""
    return cell.b.detach()


_ONLY = {
    "y0": None,
    "check_every": 1,
    "process_group": None,
    "residual_mask": None,
    "check": True,
    "accumulate": "float32",
    "store_last": 0,
    "memory_budget": None,
    "save_at": (),
    "backward_steps": None,
    "has_aux": False,
    "pass_step": False,
    "trace": False,
    "on_step": None,
    "kwargs": None,
}
"""Options of ``solve`` for which one op accepts a single value."""

_FREE = (
    *("adjoint", "aux", "beta", "compile", "frac_bits", "max_steps", "per_sample", "rng", "state"),
    "tol",
)

_KNOWN = frozenset((*_ONLY, *_FREE))

_FORMULA = ("forward", "__call__", "of_input")
"""The methods of a cell that define its formula."""


def why_unsuited(
    cell: LinearCell, z0: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> str | None:
    """Why one op cannot run the solve; None if it can."""
    if unknown := options.keys() - _KNOWN:
        return f"it has no option {min(unknown)}"
    for option, only in _ONLY.items():
        value = options.get(option, only)
        if value is not only and not _is(value, only):
            return f"it supports only {option}={only!r}"
    if options["adjoint"] not in ("auto", "reversible"):
        return "it supports only adjoint='reversible'"
    if options["state"] not in ("auto", "exact", torch.float32):
        return f"it takes state='exact' or torch.float32, got {options['state']}"
    if not isinstance(options["beta"], float):
        return f"it takes one number for beta, got {type(options['beta']).__name__}"
    if inside_transform() or forward_ad._current_level >= 0:
        return "it does not support torch.func transforms or forward mode"
    if torch.is_autocast_enabled(like_w(cell).device.type):
        return "it does not follow autocast"
    return (
        _unsuited_halting(z0, options["tol"], options["per_sample"])
        or _unsuited_cell(cell)
        or _unsuited_tensors(cell, z0, args)
    )


def check_shapes(cell: LinearCell, z0: Any, args: tuple[Any, ...]) -> None:
    """ValueError for an x and a z0 that neither the solver nor an op can take."""
    if _unsuited_cell(cell) is not None:
        return  # its formula may be another
    x = args[0] if len(args) == 1 and isinstance(args[0], Tensor) else None
    if x is not None and x.shape[-1:] != (cell.in_features,):
        raise ValueError(
            f"f: expected x of shape [..., {cell.in_features}], the in_features of the LinearCell, "
            f"got {tuple(x.shape)}; pass such an x, or make the cell with other in_features"
        )
    if x is None or not isinstance(z0, Tensor):
        return
    rows, own = x.shape[:-1], z0.shape[:-1]
    pairs = zip(reversed(rows), reversed(own), strict=False)
    broadcasts = len(rows) <= len(own) and all(n in (1, m) for n, m in pairs)
    if z0.shape[-1:] != (cell.features,) or not broadcasts:
        raise ValueError(
            f"z0: expected shape {(*rows, cell.features)} for this x and LinearCell, got "
            f"{tuple(z0.shape)}; leave z0 out, which is then cell.start(x)"
        )


def _is(value: Any, only: Any) -> bool:
    """Whether an option has this value, or one that equally means nothing: tol=0, save_at=[]."""
    if only is None or only == ():
        return value is None or (isinstance(value, (int, float, list, tuple)) and not value)
    return type(value) is type(only) and value == only


def _unsuited_halting(z0: Any, tol: float | None, per_sample: int) -> str | None:
    """Rows can halt one by one; all rows together cannot."""
    if not tol and not per_sample:
        return None
    if not tol or tol == math.inf or not per_sample:
        return f"it takes tol with per_sample=True, or neither, got tol={tol}, {per_sample=}"
    if isinstance(z0, Tensor) and z0.dim() != per_sample + 1:
        return (
            f"a sample is a row to it, got z0 with {z0.dim()} dimensions and {per_sample=}; "
            f"per_sample={max(1, z0.dim() - 1)} halts every row"
        )
    return None


def _unsuited_cell(cell: LinearCell) -> str | None:
    """A call of the cell must be the formula and nothing else."""
    for name in _FORMULA:
        # Also one that was set on the module itself, as libraries that wrap modules do.
        if name in vars(cell) or getattr(type(cell), name) is not getattr(LinearCell, name):
            return f"{type(cell).__name__} has its own {name}"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(cell, name) or getattr(torch_module, f"_global{name}") for name in hooks):
        return "the cell has hooks, which it would not call"
    return None


def _unsuited_tensors(cell: LinearCell, z0: Any, args: tuple[Any, ...]) -> str | None:
    w, plain = like_w(cell), (Tensor, nn.Parameter)
    if len(args) != 1 or not all(type(t) in plain for t in (z0, *args, *cell.parameters())):
        return "it takes one tensor x, a tensor z0 and parameters, all plain tensors"
    x = args[0]
    if w.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it takes parameters in float32, bfloat16 or float16, got {w.dtype}"
    if x.dtype != w.dtype or z0.dtype not in (w.dtype, torch.float32):
        return f"it takes x and z0 in {w.dtype}, the dtype of W, got {x.dtype} and {z0.dtype}"
    if z0.shape != (*x.shape[:-1], cell.features):
        return f"it takes z0 of shape {(*x.shape[:-1], cell.features)}, got {tuple(z0.shape)}"
    if not x.device == z0.device == w.device:
        return f"it takes tensors on one device, got {x.device}, {z0.device} and {w.device}"
    return None
