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
    """What ``update_`` writes, before it is rounded to the state's dtype. Differentiable."""
    keep, beta_, y, f = _operands(state, f, beta)
    return keep * y + beta_ * f


def define_invert(
    state: Tensor, f: Tensor, beta: float | Tensor, *, cast: Tensor | None = None
) -> None:
    """state <- (state - beta f) / (1 - beta)."""
    _write(state, inverted(state, f, beta), cast)


def inverted(state: Tensor, f: Tensor, beta: float | Tensor) -> Tensor:
    """What ``invert_`` writes, before it is rounded to the state's dtype. Differentiable."""
    keep, beta_, y, f = _operands(state, f, beta)
    return (y - beta_ * f) / keep


def _operands(
    state: Tensor, f: Tensor, beta: float | Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    compute = torch.float64 if state.dtype == torch.float64 else torch.float32
    if isinstance(beta, Tensor):
        beta = beta.reshape(()) if beta.numel() == 1 else beta
        return 1.0 - beta, beta, state.to(compute), f.to(compute)
    # Tensors, not Python numbers: torch divides by a number on a GPU by way of its reciprocal.
    keep, beta_ = (torch.tensor(x, dtype=compute, device=state.device) for x in (1.0 - beta, beta))
    return keep, beta_, state.to(compute), f.to(compute)


def _write(state: Tensor, new: Tensor, cast: Tensor | None) -> None:
    state.copy_(new)
    if cast is not None:
        cast.copy_(state)


# ---- what is asked of the arguments ----------------------------------------------------------


def check_half_step(
    op: str, state: Tensor, f: Tensor, beta: float, *, cast: Tensor | None = None
) -> Memory:
    """Check the arguments of update_ and invert_."""
    return check_float_step(op, "state", state, f, beta, cast)


def check_float_step(
    op: str, lead: str, state: Tensor, f: Tensor, beta: float | None, cast: Tensor | None
) -> Memory:
    """Check a half step on a float state, which the op calls `lead`; what may not overlap."""
    check_tensors(op, **{lead: state}, f=f, **given(cast=cast))
    if beta is not None:
        check_beta(op, "beta", beta, exact=False)
    check_float_pair(op, lead, state, f)
    check_dense(op, lead, state)
    if cast is not None:
        check_cast(op, cast, state, f, lead)
    return [(lead, state), ("f", f), ("cast", cast)]


def check_float_pair(op: str, lead: str, state: Tensor, f: Tensor) -> None:
    """Check that f fits to the state: dtypes, device and shape."""
    check_dtype(op, lead, state, tuple(F_DTYPES))
    check_dtype(op, "f", f, F_DTYPES[state.dtype], f" for a state of {state.dtype}")
    check_device(op, "f", f, state, lead)
    check_shape(op, "f", f, state, lead)


def check_channel_step(
    op: str, state: Tensor, f: Tensor, beta: Tensor, *, cast: Tensor | None = None
) -> Memory:
    """Check the arguments of update_ and invert_ where beta is a tensor."""
    check_tensors(op, beta=beta)
    memory = check_float_step(op, "state", state, f, None, cast)
    real = F64 if state.dtype == F64 else F32
    check_dtype(op, "beta", beta, (real,), f" for a state of {state.dtype}")
    check_device(op, "beta", beta, state, "state")
    if channel_dimension(state, beta) is None:
        expected = "one element, or one for each place along one dimension of state"
        got = f"shape {list(beta.shape)} for a state of shape {list(state.shape)}"
        remedy = "give it 1 in the other dimensions, such as beta.view(-1, 1, 1)"
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
    instead="torch.lerp(state, f, beta)",
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
        state: float32, float64, bfloat16 or float16, of any shape, dense in any order of its
            dimensions. Overwritten.
        f: the same shape, any strides (other strides than the state's cost a copy). float32,
            bfloat16 or float16 for a float32 state; these or float64 for float64; the state's own
            dtype for bfloat16 and float16.
        beta: the relaxation factor, in (0, 2) and not 1. A Python number; or, for a state of one
            leaf, a tensor with one element or one for each channel: of the state's number of
            dimensions or fewer, with 1 in all of them but one (``beta.view(-1, 1, 1)``), in
            float32 (float64 for a float64 state). The values of a tensor are not looked at: at 1
            the inverse divides by zero.
        cast: if given, receives the new state, rounded to its dtype: that of f, or float32. Shape
            and strides of the state.

    Returns:
        `state`.

    Computed in float32 (float64 for a float64 state), each product and the sum rounded once, then
    rounded to nearest even to the state's dtype: the same bits on every backend.

    Memory: each element of state and f is read once, state and cast written once; for a float32
    state with bfloat16 f and cast that is 12 bytes per element.

    Raises:
        ValueError, TypeError: an argument is not as above, or shares memory with one that is
            written; nothing has been written then.
        RuntimeError: an argument requires grad while grad mode is on (the op has no derivative), or
            the backend cannot run.

    Source: arXiv 2509.12917, the reversible solver's forward step.
    """
    _update((state, f, beta), cast)
    return state


def invert_(
    state: Leaves, f: Leaves, beta: float | Tensor, *, cast: Leaves | None = None
) -> Leaves:
    """One half step back, in place: state <- (state - beta f) / (1 - beta).

    The inverse of ``update_`` up to rounding, which it amplifies by 1 / abs(1 - beta) each time:
    for a state that must come back bit for bit, use the exact pair. Arguments, dtypes, memory and
    errors are those of ``update_``.

    Source: arXiv 2509.12917, the reversible solver's backward step.
    """
    _invert((state, f, beta), cast)
    return state
