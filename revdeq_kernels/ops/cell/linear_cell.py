"""The equilibrium cell: N steps of the pair update with f(s) = act(W s + u), and their adjoint.

Each of the two is one op, ``torch.ops.revdeq.linear_cell_forward`` and ``linear_cell_backward``, so
that one launch can serve all steps. u = U x + b holds all that depends on the input, computed once
outside. ``linear_cell_forward`` is differentiable: its derivative is ``linear_cell_backward``.
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
        u: [rows, d], in w's dtype.
        w: [d, d], row i for output i. bfloat16 or float16: s is rounded to it before each product,
            and the products are added up in float32. float32: IEEE, not TF32, as long as
            ``torch.backends.cuda.matmul`` keeps to its default.
        z0: [rows, d], float32.
        beta: a Python number in (0, 2) and not 1; an exact state applies ``effective_beta(beta)``.
        steps: how many, at least 1, of two evaluations of f each.
        act: "tanh", "relu", "gelu" (by erf), "silu" or "gelu_tanh", in float32.
        state: "exact": int32 fixed point, which ``linear_cell_backward`` takes back bit for bit.
            "float32": loses precision on the way back, by 1 / abs(1 - beta) in every half step;
            with a w of 16 bits, by one flipped rounding of s, much more.
        frac_bits: fractional bits of an exact state, 0 to 30. z0 is rounded to 2**-frac_bits, and f
            reads that from the first half step on.
        tol: 0.0, or the residual norm(y - f(y)) / (1e-5 + norm(f(y))) of a row below which it
            halts: from the next step on it stays as it is. y is that of the step, f(y) what its z
            takes in. No row depends on another; a launch ends for a tile when all of its rows have
            halted. Norms are summed up in an order of the implementation's own, so that a row
            whose residual is within roundings of tol may take a step more in one than in another.
            Their squares are float32: where norm(f(y)) is 2^64 or more the residual is NaN, where
            only the other is, inf; such a row does not halt.
        implementation: who runs and differentiates: a name of ``IMPLEMENTATIONS`` in
            ``revdeq_kernels.ops.cell.choice``, or None; see ``choose`` there.

    Returns:
        y, z: [rows, d], float32. NaN where an exact state left its range, or everywhere then.
        fixed: an exact state, y's before z's, int32 [2, rows, d]; otherwise empty. -2^31 where y
            and z are NaN, by which ``linear_cell_backward`` knows it.
        digits: uint8, what an exact step rounds away, in a form of the implementation's own:
            log2(1 / abs(1 - beta)) bits for each half step and element; otherwise empty.
        flag: int32 [1], not 0 if an exact state or f left +-2**(30 - frac_bits), or was NaN.
        taken: with a tol the steps that each row took, int32 [rows]; otherwise empty.
        residual: with a tol the last residual of each row, float32 [rows]; otherwise empty.

    torch.func.vmap makes a call for each sample; rows of one call take less time.

    Memory, if one launch serves all steps: u and z0 are read once, y, z, fixed and digits written
    once; w stays on chip. With bfloat16 u, beta 0.5 and 8 steps, 24 bytes per element, of whatever
    number of steps 22 and a digit each; with a tol 8 bytes more for each row.

    Raises:
        ValueError, TypeError: an argument is not as above, or a batch of vmap is empty.
        RuntimeError: a second derivative, a transform of torch.func other than vmap, forward mode.

    Source: arXiv 2509.12917 with the classical equilibrium cell; the exact state is this project's.
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
    """The gradients of u, w and z0 from those of y and z, by walking the solve back.

    grad_y and grad_z are [rows, d], float32. y and z are the states at the end, those of fixed for
    an exact one, which stay as they are; digits, and with a tol taken, are as
    ``linear_cell_forward`` left them. The rest are its arguments.

    Returns:
        grad_u: in u's dtype, added up in float32 over the steps.
        grad_w: float32, whatever w's dtype; added up over steps and rows in a fixed order.
        grad_z0: float32.
        distance: float32 [1], the farthest that an element of y or z came back from its start: 0
            for an exact state, if u, w and z0 are those of the forward pass. inf for a row that is
            not finite, or that left the range of an exact state.
        lost: int32 [1], how many rows did not come back.

    Lost rows have NaN for gradients, and then so has all of grad_w: they would be wrong. An exact
    state has to come back bit for bit; a float32 row to within 1e-3 of the largest number in its
    start and end. A row whose y or z is NaN or infinite at its end is lost, whatever it comes back
    to: so is, of an exact state, one that left its range, and in the composite then every row.
    NaN or infinity in grad_y or grad_z loses no row; its gradients are what the formulas give.

    Memory, in one launch: y, z, grad_y, grad_z, u, z0 and digits are read once, grad_u and grad_z0
    written once; with bfloat16 u, beta 0.5 and 8 steps 30 bytes per element.

    Raises:
        ValueError, TypeError: an argument is not as above.

    Source: arXiv 2509.12917, the backward pass of the reversible solver.
    """
    numbers = Numbers(beta, steps, act, state, frac_bits, tol)
    if taken is None:  # of rows that took all steps
        taken = z0.new_empty(0, dtype=torch.int32)
    ends, inputs = Ends(grad_y, grad_z, y, z, digits, taken), Inputs(u, w, z0)
    if not is_compiling():
        check_backward(ends, inputs, numbers)
        numbers = _plain(numbers)
    return Gradients(*_overload(implementation, w, act, BACKWARD)(*ends, *inputs, *numbers))


def _plain(numbers: Numbers) -> Numbers:
    """Python's own numbers: NumPy's are taken too, but not by the ops."""
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
"""Where the forward, backward and digits_shape of each implementation are."""


def run_forward(
    implementation: str, inputs: Inputs, numbers: Numbers, *, keeps: bool = True
) -> Solved:
    """What the op of an implementation does, without torch's dispatcher in between.

    For callers outside of torch.func, vmap and tracing who differentiate it themselves. Everything
    is checked as in ``linear_cell_forward``. Where there will be no backward pass, "cpu" leaves
    fixed and digits empty.
    """
    check_forward(inputs, numbers)
    cell_choice.ready(implementation, inputs.w, numbers)
    options = {} if keeps or implementation != "cpu" else {"keeps": False}
    with torch.no_grad():
        return _MODULES[implementation]().forward(_contiguous(inputs), numbers, **options)


def run_backward(
    implementation: str, ends: Ends, inputs: Inputs, numbers: Numbers, *, wants_z0: bool = True
) -> Gradients:
    """As ``run_forward``, for ``linear_cell_backward``.

    Where nobody wants grad_z0, "cpu" saves a product by it, and leaves it empty.
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
    """Both ops of an implementation."""
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
    """What the way back needs: the arguments, and the states at the end."""
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
    """Stands for the derivative of the derivative, which there is not."""
    raise RuntimeError(
        "linear_cell_backward: expected to be differentiated once, got a derivative of the "
        "derivative (create_graph=True, torch.func); use torch_revdeq.solve with "
        "adjoint='backprop' and state=torch.float32"
    )


def _overload(implementation: str | None, w: Tensor, act: str, name: str) -> Callable[..., Any]:
    namespace = IMPLEMENTATIONS[choose(implementation, w, act)]
    return getattr(getattr(torch.ops, namespace), name).default


for _name in IMPLEMENTATIONS:
    _define(_name)
