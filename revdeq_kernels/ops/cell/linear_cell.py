"""The equilibrium cell: N steps of the pair update with f(s) = act(W s + u), and their adjoint.

Each of the two is a single op, ``torch.ops.revdeq.linear_cell_forward`` and
``linear_cell_backward``, so that one launch can run all steps. u = U x + b contains everything that
depends on the input and is computed once by the caller. ``linear_cell_forward`` is differentiable:
its derivative is ``linear_cell_backward``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import choice as cell_choice
from . import cpu
from . import reference as composite
from .arguments import (
    BACKWARD,
    FORWARD,
    SCHEMAS,
    Ends,
    Gradients,
    Inputs,
    Numbers,
    Solved,
    of_backward,
    of_forward,
)
from .batching import one_by_one
from .checks import check_backward, check_forward
from .choice import IMPLEMENTATIONS, choose

# ---- the public functions --------------------------------------------------------------------


def linear_cell_forward(
    u: Tensor,
    w: Tensor,
    z0: Tensor,
    beta: float,
    steps: int,
    act: str = "tanh",
    *,
    state: str = "exact",
    frac_bits: int = 20,
    tol: float = 0.0,
    implementation: str | None = None,
) -> Solved:
    """`steps` steps of the pair update with f(s) = act(W s + u). Differentiable in u, w and z0.

        y <- (1 - beta) y + beta f(z)        z <- (1 - beta) z + beta f(y)       from y = z = z0

    Args:
        u: [rows, d], in the dtype of w.
        w: [d, d], row i for output i. bfloat16 or float16: s is rounded to this dtype before each
            product, and products are accumulated in float32. float32: IEEE rather than TF32
            products, unless the defaults of ``torch.backends.cuda.matmul`` are changed.
        z0: [rows, d], float32: the initial state of y and z.
        beta: a Python number in (0, 2) and not 1. An exact state applies ``effective_beta(beta)``.
        steps: the number of steps, at least 1; each evaluates f twice.
        act: "tanh", "relu", "gelu" (with erf), "silu" or "gelu_tanh", computed in float32.
        state: "exact": int32 fixed-point, reconstructed bit for bit by ``linear_cell_backward``.
            "float32": the backward pass loses precision, by a factor 1 / abs(1 - beta) per half
            step; with a 16-bit w it can lose much more, if s rounds differently once.
        frac_bits: the number of fractional bits of an exact state, 0 to 30. z0 is rounded to
            2**-frac_bits before the first half step.
        tol: 0.0, or a tolerance for the residual norm(y - f(y)) / (1e-5 + norm(f(y))) of each row.
            A row whose residual falls below it halts: it does not change after this step. y is the
            new y of the step, and f(y) is the value that updates z. Rows are independent; a launch
            finishes a tile once all of its rows have halted. Implementations sum norms in different
            orders, so a row whose residual is within rounding error of tol may take one step more
            in one than in another. Squares are float32: the residual is NaN if norm(f(y)) is 2^64
            or more, otherwise inf if norm(y - f(y)) is; such rows do not halt.
        implementation: the implementation of both passes: a name from ``IMPLEMENTATIONS`` in
            ``revdeq_kernels.ops.cell.choice``, or None; see ``choose`` there.

    Returns:
        y, z: [rows, d], float32: the final state. If an exact state leaves its range, NaN in that
            row or, depending on the implementation, everywhere.
        fixed: the final exact state, y then z, int32 [2, rows, d]; otherwise empty. -2^31 where y
            and z are NaN, which marks lost rows for ``linear_cell_backward``.
        digits: uint8, what the half steps of an exact state round away, in a format specific to the
            implementation: log2(1 / abs(1 - beta)) bits per half step and element; otherwise empty.
        flag: int32 [1], not 0 if an exact state or f left +-2**(30 - frac_bits), or was NaN.
        taken: with a tol, the number of steps of each row, int32 [rows]; otherwise empty.
        residual: with a tol, the last residual of each row, float32 [rows]; otherwise empty.

    Under torch.func.vmap there is one call per sample; rows of a single call are faster.

    Memory, if one launch runs all steps: u and z0 are read once; y, z, fixed and digits are written
    once; w stays on chip. With bfloat16 u, this is 22 bytes per element plus the digits: 24 bytes
    at beta 0.5 and 8 steps. A tol adds 8 bytes per row.

    Raises:
        ValueError, TypeError: an argument is not as described, or a vmap batch is empty.
        RuntimeError: a second derivative, a torch.func transform other than vmap, or forward mode.

    Source: arXiv 2509.12917, with the classical equilibrium cell; the exact state is original to
    this project.
    """
    inputs, numbers = Inputs(u, w, z0), Numbers(beta, steps, act, state, frac_bits, tol)
    if not is_compiling():
        check_forward(inputs, numbers)
        numbers = _plain(numbers)
    return Solved(*_overload(implementation, w, act, FORWARD)(*inputs, *numbers))


def linear_cell_backward(
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
    act: str = "tanh",
    *,
    state: str = "exact",
    frac_bits: int = 20,
    tol: float = 0.0,
    taken: Tensor | None = None,
    implementation: str | None = None,
) -> Gradients:
    """The gradients of u, w and z0 from those of y and z, by reversing the solve.

    grad_y and grad_z are [rows, d], float32. y and z are the final states (int32, from `fixed`, for
    an exact state; otherwise float32), which are only read. digits, and with a tol also taken, are
    as returned by ``linear_cell_forward``. The other arguments are those of
    ``linear_cell_forward``.

    Returns:
        grad_u: in the dtype of u, accumulated over the steps in float32.
        grad_w: float32 for any dtype of w, accumulated over steps and rows in a fixed order.
        grad_z0: float32.
        distance: float32 [1], the largest difference between an element of the reconstructed y or z
            and z0. 0 for an exact state, if u, w and z0 are those of the forward pass; inf if a row
            is not finite or left the range of an exact state.
        lost: int32 [1], the number of lost rows, which were not reconstructed.

    The gradients of lost rows would be wrong, so they are NaN, and with them all of grad_w. An
    exact row is lost unless it is reconstructed bit for bit; a float32 row, unless it is
    reconstructed to within 1e-3 of the largest magnitude in its initial and final states. A row
    whose final y or z is NaN or infinite is always lost. So is a row of an exact state that left
    its range; in the composite, every row is then lost. NaN or infinity in grad_y or grad_z does
    not make a row lost: its gradients follow from the formulas.

    Memory, in one launch: y, z, grad_y, grad_z, u, z0 and digits are read once; grad_u and grad_z0
    are written once; 30 bytes per element with bfloat16 u, beta 0.5 and 8 steps.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Source: arXiv 2509.12917, the backward pass of the reversible solver.
    """
    numbers = Numbers(beta, steps, act, state, frac_bits, tol)
    if taken is None:  # all rows took all steps
        taken = z0.new_empty(0, dtype=torch.int32)
    ends, inputs = Ends(grad_y, grad_z, y, z, digits, taken), Inputs(u, w, z0)
    if not is_compiling():
        check_backward(ends, inputs, numbers)
        numbers = _plain(numbers)
    return Gradients(*_overload(implementation, w, act, BACKWARD)(*ends, *inputs, *numbers))


def _plain(numbers: Numbers) -> Numbers:
    """The numbers as Python numbers: the ops do not accept NumPy scalars."""
    beta, steps, frac_bits = float(numbers.beta), int(numbers.steps), int(numbers.frac_bits)
    tol = float(numbers.tol)
    return numbers._replace(beta=beta, steps=steps, frac_bits=frac_bits, tol=tol)


# ---- an implementation -----------------------------------------------------------------------

_MODULES: dict[str, Callable[[], Any]] = {
    "composite": lambda: composite,
    "cpu": lambda: cpu,
    "triton": lambda: cell_choice.launcher("triton"),
    "gluon": lambda: cell_choice.launcher("gluon"),
}
"""The providers of forward, backward and digits_shape of each implementation."""


def run_forward(
    implementation: str, inputs: Inputs, numbers: Numbers, *, keeps: bool = True
) -> Solved:
    """Run the op of an implementation without torch's dispatcher.

    For callers that differentiate it themselves, outside of torch.func, vmap and tracing. The
    arguments are checked as in ``linear_cell_forward``. Without `keeps`, no backward pass follows,
    and "cpu" leaves fixed and digits empty.
    """
    check_forward(inputs, numbers)
    cell_choice.ready(implementation, inputs.w, numbers)
    options = {} if keeps or implementation != "cpu" else {"keeps": False}
    with torch.no_grad():
        return _MODULES[implementation]().forward(_contiguous(inputs), numbers, **options)


def run_backward(
    implementation: str, ends: Ends, inputs: Inputs, numbers: Numbers, *, wants_z0: bool = True
) -> Gradients:
    """Like ``run_forward``, for ``linear_cell_backward``.

    Without `wants_z0`, "cpu" skips a product and leaves grad_z0 empty.
    """
    module = _MODULES[implementation]()
    check_backward(ends, inputs, numbers, _digits_shape(module, inputs, numbers))
    cell_choice.ready(implementation, inputs.w, numbers)
    unwanted = {} if wants_z0 or implementation != "cpu" else {"wants_z0": False}
    with torch.no_grad():
        return module.backward(_contiguous(ends), _contiguous(inputs), numbers, **unwanted)


def _contiguous(tensors: Any) -> Any:
    return type(tensors)(*(t.contiguous() for t in tensors))


def _digits_shape(module: Any, inputs: Inputs, numbers: Numbers) -> tuple[int, ...]:
    return module.digits_shape(inputs.z0, numbers) if numbers.exact else (0,)


# ---- its ops ---------------------------------------------------------------------------------


def _define(implementation: str) -> None:
    """Define both ops of an implementation."""
    namespace, load = IMPLEMENTATIONS[implementation], _MODULES[implementation]

    def forward(*args: Any) -> Any:
        return run_forward(implementation, *of_forward(args))

    def fake_forward(*args: Any) -> Any:
        inputs, numbers = of_forward(args)
        check_forward(inputs, numbers)
        z0, shape = inputs.z0, _digits_shape(load(), inputs, numbers)
        fixed = (2, *z0.shape) if numbers.exact else (0,)
        rows = z0.shape[0] if numbers.halting else 0
        return Solved(
            *(z0.new_empty(z0.shape), z0.new_empty(z0.shape)),
            z0.new_empty(fixed, dtype=torch.int32),
            z0.new_empty(shape, dtype=torch.uint8),
            z0.new_empty(1, dtype=torch.int32),
            z0.new_empty(rows, dtype=torch.int32),
            z0.new_empty(rows),
        )

    def backward(*args: Any) -> Any:
        return run_backward(implementation, *of_backward(args))

    def fake_backward(*args: Any) -> Any:
        ends, inputs, numbers = of_backward(args)
        check_backward(ends, inputs, numbers, _digits_shape(load(), inputs, numbers))
        u, w, z0 = inputs
        grad_w, grad_z0 = z0.new_empty(w.shape), z0.new_empty(z0.shape)
        lost = z0.new_empty(1, dtype=torch.int32)
        return Gradients(u.new_empty(u.shape), grad_w, grad_z0, z0.new_empty(1), lost)

    ops = {FORWARD: (forward, fake_forward), BACKWARD: (backward, fake_backward)}
    for name, (function, fake) in ops.items():
        schema = SCHEMAS[name]
        op = torch.library.custom_op(
            f"{namespace}::{name}", function, mutates_args=(), schema=schema
        )
        op.register_fake(fake)
        op.register_vmap(one_by_one(op, name))
        if name == FORWARD:
            op.register_autograd(_differentiate(namespace), setup_context=_keep)
        else:
            op.register_autograd(_refuse_second)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save what the backward pass needs: the arguments and the final states."""
    given, ctx.numbers = of_forward(inputs)
    out = Solved(*output)
    states = (out.fixed,) if ctx.numbers.exact else (out.y, out.z)
    ctx.save_for_backward(*given, out.digits, out.taken, *states)
    ctx.mark_non_differentiable(out.residual)


def _differentiate(namespace: str) -> Callable[..., Any]:
    def backward(ctx: Any, *arrived: Tensor | None) -> Any:
        u, w, z0, digits, taken, *states = ctx.saved_tensors
        y, z = states[0] if ctx.numbers.exact else states
        grads = [torch.zeros_like(z0) if g is None else g for g in arrived[:2]]
        if torch.is_grad_enabled():
            _refuse_second(ctx)
        op = getattr(getattr(torch.ops, namespace), BACKWARD).default
        out = Gradients(*op(*grads, y, z, digits, taken, u, w, z0, *ctx.numbers))
        return out.grad_u, out.grad_w.to(w.dtype), out.grad_z0, *(None,) * len(ctx.numbers)

    return backward


def _refuse_second(ctx: Any, *grads: Any) -> Any:
    """The derivative of the derivative, which does not exist: raises RuntimeError."""
    raise RuntimeError(
        "linear_cell_backward: expected to be differentiated once, got a second derivative "
        "(create_graph=True, torch.func); use torch_revdeq.solve with adjoint='backprop' and "
        "state=torch.float32"
    )


def _overload(implementation: str | None, w: Tensor, act: str, name: str) -> Callable[..., Any]:
    namespace = IMPLEMENTATIONS[choose(implementation, w, act)]
    return getattr(getattr(torch.ops, namespace), name).default


for _name in IMPLEMENTATIONS:
    _define(_name)
