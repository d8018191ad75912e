"""The passes of a backward step: an inverse half step and the adjoint beside it, in one launch.

    invert_z_adjoint_y_    grad <- grad + vjp; seed <- beta grad; grad <- (1 - beta) grad
    invert_y_adjoint_z_    grad <- (1 - beta) grad + vjp; seed <- beta grad
    invert_y_adjoint_z0_   grad <- ((1 - beta) grad + other) + vjp, at the start of a solve

each beside state <- (state - beta f) / (1 - beta), and the same three on an exact state, where the
alternative keeps a float64 state as in exact_step.py. The alternative is the sequence that a
pass merges, of torch's ops in their best form in place.
Bytes per element: those of the inverse (half_step.py, exact_step.py) and those of the adjoint:
grad is read and written, vjp is read, seed is written; at the start `other` is read, and neither
seed nor cast is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import revdeq_kernels
from bench.core import providers
from bench.core.case import Bind, Case, Plan, Provider, Tensors, binds, elements_of
from bench.ops import adjoint, exact_step, half_step
from bench.ops.exact_step import FRAC_BITS, TIE

# (op, beta, f, headline). The time of a float pass does not depend on beta; that of an exact one
# does as in exact_step.py, whichever gradient is carried beside it.
ROWS: tuple[tuple[str, float, torch.dtype, bool], ...] = (
    ("invert_z_adjoint_y_", 0.5, torch.bfloat16, True),
    ("invert_z_adjoint_y_", 0.5, torch.float32, False),
    ("invert_y_adjoint_z_", 0.5, torch.bfloat16, True),
    ("invert_y_adjoint_z0_", 0.5, torch.bfloat16, False),
    ("invert_z_adjoint_y_exact_", 0.5, torch.bfloat16, True),
    ("invert_z_adjoint_y_exact_", 0.7312, torch.bfloat16, False),
    ("invert_z_adjoint_y_exact_", 0.5, torch.float32, False),
    ("invert_y_adjoint_z_exact_", 0.5, torch.bfloat16, True),
    ("invert_y_adjoint_z0_exact_", 0.5, torch.bfloat16, False),
)


def is_exact(op: str) -> bool:
    """Whether the state is exact."""
    return op.endswith("exact_")


def at_start(op: str) -> bool:
    """Whether this is the last pass, which reaches the start of the solve."""
    return op.startswith("invert_y_adjoint_z0_")


def bytes_moved(elements: int, op: str, beta: float, f: torch.dtype) -> int:
    """Bytes one pass must move."""
    cast = cast_of(op, f)
    if is_exact(op):
        inverse = exact_step.bytes_moved(elements, beta, f, cast)
    else:
        inverse = half_step.bytes_moved(elements, torch.float32, f, cast)
    if at_start(op):
        return inverse + elements * (3 * torch.float32.itemsize + f.itemsize)
    return inverse + adjoint.bytes_moved(elements, f)


def cast_of(op: str, f: torch.dtype) -> torch.dtype | None:
    """The type of the copy that the next f reads; none at the start, where no f is next."""
    return None if at_start(op) or f == torch.float32 else f


def eager_invert(
    state: torch.Tensor, f: torch.Tensor, beta: float, cast: torch.Tensor | None
) -> None:
    """The inverse without a division, faster than `half_step.eager_invert` for all types."""
    state.lerp_(f.to(state.dtype), half_step.lerp_weight("invert_", beta))
    if cast is not None:
        cast.copy_(state)


def eager_z_adjoint_y(
    z: torch.Tensor,
    f: torch.Tensor,
    beta: float,
    grad: torch.Tensor,
    vjp: torch.Tensor,
    seed: torch.Tensor,
    cast: torch.Tensor | None = None,
) -> None:
    """The first pass as a user writes it."""
    eager_invert(z, f, beta, cast)
    grad.add_(vjp)
    torch.mul(grad, beta, out=seed)
    grad.mul_(1 - beta)


def eager_y_adjoint_z(
    y: torch.Tensor,
    f: torch.Tensor,
    beta: float,
    grad: torch.Tensor,
    vjp: torch.Tensor,
    next_beta: float,
    seed: torch.Tensor,
    cast: torch.Tensor | None = None,
) -> None:
    """The second pass as a user writes it."""
    eager_invert(y, f, beta, cast)
    adjoint.eager_adjoint(grad, vjp, 1 - beta, next_beta, seed)


def eager_y_adjoint_z0(
    y: torch.Tensor,
    f: torch.Tensor,
    beta: float,
    grad: torch.Tensor,
    other: torch.Tensor,
    vjp: torch.Tensor,
) -> None:
    """The last pass as a user writes it."""
    eager_invert(y, f, beta, None)
    torch.add(other, grad, alpha=1 - beta, out=grad).add_(vjp)


EAGER: dict[str, Callable[..., None]] = {
    "invert_z_adjoint_y_": eager_z_adjoint_y,
    "invert_y_adjoint_z_": eager_y_adjoint_z,
    "invert_y_adjoint_z0_": eager_y_adjoint_z0,
}


def float_op(op: str) -> str:
    """The pass on a float state that computes what `op` does."""
    return op.replace("exact_", "")


def make(elements: int, *, op: str, beta: float, device: torch.device, f: torch.dtype) -> Tensors:
    """The tensors of the inverse, random gradients, and NaN in `seed`."""
    cast = cast_of(op, f)
    if is_exact(op):
        tensors = exact_step.make(
            elements, op="invert_exact_", beta=beta, device=device, f=f, cast=cast
        )
    else:
        tensors = half_step.make(elements, device=device, dtypes=(torch.float32, f, cast))
    carried = adjoint.make(elements, device=device, f=f)
    if at_start(op):
        del carried["seed"]
        carried["other"] = torch.empty(elements, device=device).uniform_(-1, 1)
    return tensors | carried


def settle(tensors: Tensors) -> None:
    """Start near the fixed point: the float states on it, the gradients not far and never at 0."""
    for name in ("state", "float64_state"):
        if name in tensors and tensors[name].is_floating_point():
            tensors[name].copy_(tensors["f"])
    adjoint.settle(tensors)
    if "other" in tensors:
        tensors["other"].copy_(tensors["vjp"])


def bind_op(op: str, beta: float, f: torch.dtype) -> Bind:
    """Bind the public function, of either kind."""
    function = getattr(revdeq_kernels, op)
    if is_exact(op):
        step = ("state", "digits", "f", beta, FRAC_BITS[f], TIE)
        return binds(function, *step, *carried_arguments(op, beta))
    return binds(function, "state", "f", beta, *carried_arguments(op, beta))


def carried_arguments(op: str, beta: float) -> tuple[Any, ...]:
    """The arguments of the adjoint; every step of the solve has the same beta."""
    if at_start(op):
        return "grad", "other", "vjp"
    between = (beta,) if op.startswith("invert_y_adjoint_z_") else ()
    return "grad", "vjp", *between, "seed"


def case_providers(plan: Plan, op: str, beta: float, f: torch.dtype) -> Iterator[Provider]:
    """The sequence, eager and compiled, then the backends of the project."""
    state, suffix = ("float64_state", " float64") if is_exact(op) else ("state", "")
    name, arguments = float_op(op), (state, "f", beta, *carried_arguments(op, beta))
    own, definition = bind_op(op, beta, f), getattr(revdeq_kernels, name)
    return providers.beside_eager(plan, EAGER[name], definition, arguments, own=own, suffix=suffix)


def dtypes_of(op: str, f: torch.dtype) -> dict[str, torch.dtype]:
    """The types by the names of the op's arguments."""
    _, lead, _, carried, *_ = op.split("_")
    cast = cast_of(op, f)
    roles = {lead: torch.int32 if is_exact(op) else torch.float32, "f": f}
    roles |= {} if cast is None else {"cast": cast}
    roles |= {f"grad_{carried.removesuffix('0')}": torch.float32}
    roles |= {"grad_y": torch.float32} if at_start(op) else {}
    return roles | {"vjp": f} | ({} if at_start(op) else {"seed": f})


def cases(plan: Plan, size_mb: float) -> Iterator[Case]:
    """Every row of `ROWS`."""
    elements = elements_of(size_mb, torch.float32)
    for op, beta, f, headline in ROWS:
        yield Case(
            benchmark="passes",
            op=op,
            dtypes=dtypes_of(op, f),
            elements=elements,
            bytes=bytes_moved(elements, op, beta, f),
            make=partial(make, op=op, beta=beta, device=plan.device, f=f),
            providers=tuple(case_providers(plan, op, beta, f)),
            beta=beta,
            settle=settle,
            headline=headline,
        )
