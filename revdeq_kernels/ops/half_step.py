"""The half steps on a float state: ``update_`` and ``invert_``."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.checks import (
    F32,
    F64,
    F_DTYPES,
    Memory,
    check_beta,
    check_cast,
    check_dense,
    check_device,
    check_dtype,
    check_shape,
    check_tensors,
    given,
    refuse,
)
from ..core.lists import Leaves
from ..core.op import Op
from ..core.roles import BETA, BETAS, CAST, DENSE, FLOAT_CASES, FREE, Argument

# ---- the definition --------------------------------------------------------------------------
# The equations of arXiv 2509.12917.


def define_update(
    state: Tensor, f: Tensor, beta: float | Tensor, *, cast: Tensor | None = None
) -> None:
    """state <- (1 - beta) state + beta f, in float32 (float64 for a float64 state)."""
    _write(state, updated(state, f, beta), cast)


def updated(state: Tensor, f: Tensor, beta: float | Tensor) -> Tensor:
    """The result of ``update_`` before it is rounded to the state's dtype. Differentiable."""
    keep, beta_, y, f = _operands(state, f, beta)
    return keep * y + beta_ * f


def define_invert(
    state: Tensor, f: Tensor, beta: float | Tensor, *, cast: Tensor | None = None
) -> None:
    """state <- (state - beta f) / (1 - beta)."""
    _write(state, inverted(state, f, beta), cast)


def inverted(state: Tensor, f: Tensor, beta: float | Tensor) -> Tensor:
    """The result of ``invert_`` before it is rounded to the state's dtype. Differentiable."""
    keep, beta_, y, f = _operands(state, f, beta)
    return (y - beta_ * f) / keep


def _operands(
    state: Tensor, f: Tensor, beta: float | Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    compute = torch.float64 if state.dtype == torch.float64 else torch.float32
    if isinstance(beta, Tensor):
        beta = beta.reshape(()) if beta.numel() == 1 else beta
        return 1.0 - beta, beta, state.to(compute), f.to(compute)
    # Tensors, not Python numbers: on a GPU, torch divides by a number by multiplying with its
    # reciprocal.
    keep, beta_ = (torch.tensor(x, dtype=compute, device=state.device) for x in (1.0 - beta, beta))
    return keep, beta_, state.to(compute), f.to(compute)


def _write(state: Tensor, new: Tensor, cast: Tensor | None) -> None:
    state.copy_(new)
    if cast is not None:
        cast.copy_(state)


# ---- argument checks -------------------------------------------------------------------------


def check_half_step(
    op: str, state: Tensor, f: Tensor, beta: float, *, cast: Tensor | None = None
) -> Memory:
    """Check the arguments of update_ and invert_."""
    return check_float_step(op, "state", state, f, beta, cast)


def check_float_step(
    op: str, lead: str, state: Tensor, f: Tensor, beta: float | None, cast: Tensor | None
) -> Memory:
    """Check a half step on a float state, named `lead` in the op; returns the tensors by name."""
    check_tensors(op, **{lead: state}, f=f, **given(cast=cast))
    if beta is not None:
        check_beta(op, "beta", beta, exact=False)
    check_float_pair(op, lead, state, f)
    check_dense(op, lead, state)
    if cast is not None:
        check_cast(op, cast, state, f, lead)
    return [(lead, state), ("f", f), ("cast", cast)]


def check_float_pair(op: str, lead: str, state: Tensor, f: Tensor) -> None:
    """Check that f matches the state: dtypes, device and shape."""
    check_dtype(op, lead, state, tuple(F_DTYPES))
    check_dtype(op, "f", f, F_DTYPES[state.dtype], f" for a state of {state.dtype}")
    check_device(op, "f", f, state, lead)
    check_shape(op, "f", f, state, lead)


def check_channel_step(
    op: str, state: Tensor, f: Tensor, beta: Tensor, *, cast: Tensor | None = None
) -> Memory:
    """Check the arguments of update_ and invert_ if beta is a tensor."""
    check_tensors(op, beta=beta)
    memory = check_float_step(op, "state", state, f, None, cast)
    real = F64 if state.dtype == F64 else F32
    check_dtype(op, "beta", beta, (real,), f" for a state of {state.dtype}")
    check_device(op, "beta", beta, state, "state")
    if channel_dimension(state, beta) is None:
        expected = "one element, or one per index of one dimension of state"
        got = f"shape {list(beta.shape)} for a state of shape {list(state.shape)}"
        remedy = "give it size 1 in the other dimensions, for example beta.view(-1, 1, 1)"
        refuse(ValueError, op, "beta", expected, got, remedy)
    return [*memory, ("beta", beta)]


def channel_dimension(state: Tensor, beta: Tensor) -> int | None:
    """The dimension of `state` along which `beta` varies; -1 for none, None if it does not fit."""
    if beta.numel() == 1:
        return -1
    if beta.dim() > state.dim() or beta.numel() == 0:
        return None
    found = -1
    for dimension, size in enumerate(beta.shape, state.dim() - beta.dim()):
        if size == 1:
            continue
        if size != state.shape[dimension] or found >= 0:
            return None
        found = dimension
    return found


# ---- the ops ---------------------------------------------------------------------------------

_STATE, _F = Argument("state", DENSE, written=True), Argument("f", FREE)
_STEP = (_STATE, _F, Argument("beta", BETA), CAST)
_CHANNEL_STEP = (_STATE, _F, Argument("beta", BETAS), CAST)
_CHANNEL_CASES = [(s, f, F64 if s == F64 else F32, cast) for s, f, cast in FLOAT_CASES]

_update = Op(
    "update_",
    _STEP,
    define_update,
    check_half_step,
    instead="(1 - beta) * state + beta * f",
    dtypes=FLOAT_CASES,
    equation="state <- (1 - beta) state + beta f",
    kernels=("half_step_kernel", "channel_step_kernel"),
)
_invert = Op(
    "invert_",
    _STEP,
    define_invert,
    check_half_step,
    instead="(state - beta * f) / (1 - beta)",
    dtypes=FLOAT_CASES,
    equation="state <- (state - beta f) / (1 - beta)",
    kernels=("half_step_kernel", "channel_step_kernel"),
)
for _op in (_update, _invert):
    _op.channels = Op(
        f"{_op.name}.channels",
        _CHANNEL_STEP,
        _op.define,
        check_channel_step,
        instead=_op.instead,
        dtypes=_CHANNEL_CASES,
    )

# ---- the public functions --------------------------------------------------------------------


def update_(
    state: Leaves, f: Leaves, beta: float | Tensor, *, cast: Leaves | None = None
) -> Leaves:
    """One half step forward, in place: state <- (1 - beta) state + beta f.

    Args:
        state: float32, float64, bfloat16 or float16, any shape, dense, dimensions in any order.
            Overwritten.
        f: the shape of the state, any strides (strides that differ from the state's cost a copy).
            float32, bfloat16 or float16 for a float32 state; these or float64 for a float64 state;
            the state's dtype for bfloat16 and float16 states.
        beta: the relaxation factor, in (0, 2) and not 1. A Python number; or, for a single state
            (not a list), a tensor with one element or one per channel, in float32 (float64 for a
            float64 state). It broadcasts against the state, with size 1 in all dimensions but one
            (such as ``beta.view(-1, 1, 1)``). The values of a tensor are not checked: at 1 the
            inverse divides by zero.
        cast: if given, receives the new state rounded to the dtype of `cast`, which is the dtype of
            f or float32. Shape and strides of the state.

    Returns:
        `state`.

    Each product and the sum are computed and rounded in float32 (float64 for a float64 state); the
    result is then rounded to nearest even to the state's dtype. All backends return the same bits.
    The op has no derivative. Its differentiable equivalent is ``(1 - beta) * state + beta * f``,
    bitwise identical if state and f are both float32 or both float64 (``torch.lerp`` is not).

    Memory: each element of state and f is read once, each element of state and cast written once;
    12 bytes per element for a float32 state with bfloat16 f and cast.

    Raises:
        ValueError, TypeError: an argument is not as described, or overlaps the memory of an
            argument that is written. Nothing has been written yet.
        RuntimeError: an argument requires grad while grad mode is on, or the backend cannot run.

    Source: arXiv 2509.12917, the reversible solver's forward step.
    """
    _update((state, f, beta), cast)
    return state


def invert_(
    state: Leaves, f: Leaves, beta: float | Tensor, *, cast: Leaves | None = None
) -> Leaves:
    """One half step in reverse, in place: state <- (state - beta f) / (1 - beta).

    The inverse of ``update_`` up to rounding errors, which each call amplifies by
    1 / abs(1 - beta). To reconstruct a state bit for bit, use ``update_exact_`` and
    ``invert_exact_``. Arguments, dtypes, memory traffic and errors are those of ``update_``.

    Source: arXiv 2509.12917, the reversible solver's backward step.
    """
    _invert((state, f, beta), cast)
    return state
