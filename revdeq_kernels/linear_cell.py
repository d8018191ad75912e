"""The equilibrium cell: N steps of the pair update with f(s) = act(W s + u), and their adjoint.

Each of the two is one op, ``torch.ops.revdeq.linear_cell_forward`` and ``linear_cell_backward``, so
that one launch can serve all steps. u = U x + b holds all that depends on the input, computed once
outside. ``linear_cell_forward`` is differentiable: its derivative is ``linear_cell_backward``.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Sequence
from numbers import Integral
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from . import backends, composite, first_use
from .conditions import (
    BF16,
    F16,
    F32,
    check_beta,
    check_device,
    check_dtype,
    check_shape,
    check_tensors,
    refuse,
)
from .dispatch import NAMESPACE

ACTS = tuple(composite.ACTIVATIONS)
STATES = ("exact", "float32")

_FORWARD, _BACKWARD = "linear_cell_forward", "linear_cell_backward"
_NUMBERS = "float beta, int steps, str act, str state, int frac_bits"
_SCHEMAS = {
    _FORWARD: f"(Tensor u, Tensor w, Tensor z0, {_NUMBERS}) -> "
    "(Tensor y, Tensor z, Tensor fixed, Tensor digits, Tensor flag)",
    _BACKWARD: "(Tensor grad_y, Tensor grad_z, Tensor y, Tensor z, Tensor digits, Tensor u, "
    f"Tensor w, Tensor z0, {_NUMBERS}) -> "
    "(Tensor grad_u, Tensor grad_w, Tensor grad_z0, Tensor distance, Tensor lost)",
}

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
    implementation: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
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
        act: "tanh", "relu", "gelu" (by erf) or "silu", in float32.
        state: "exact": int32 fixed point, which ``linear_cell_backward`` takes back bit for bit.
            "float32": loses precision on the way back, by 1 / abs(1 - beta) in every half step;
            with a w of 16 bits, by one flipped rounding of s, much more.
        frac_bits: fractional bits of an exact state, 0 to 30. z0 is rounded to 2**-frac_bits, and f
            reads that from the first half step on.
        implementation: who runs and differentiates: a name of IMPLEMENTATIONS, or None; see
            ``choose``.

    Returns:
        y, z: [rows, d], float32. NaN where an exact state left its range, or everywhere then.
        fixed: an exact state, y's before z's, int32 [2, rows, d]; otherwise empty.
        digits: uint8, what an exact step rounds away, in a form of the implementation's own:
            log2(1 / abs(1 - beta)) bits for each half step and element; otherwise empty.
        flag: int32 [1], not 0 if an exact state or f left +-2**(30 - frac_bits), or was NaN.

    Memory, if one launch serves all steps: u and z0 are read once, y, z, fixed and digits written
    once; w stays on chip. With bfloat16 u, beta 0.5 and 8 steps, 24 bytes per element, of whatever
    number of steps 22 and a digit each.

    Raises:
        ValueError, TypeError: an argument is not as above.
        RuntimeError: a second derivative, a transform of torch.func other than vmap, forward mode.

    Source: arXiv 2509.12917 with the classical equilibrium cell; the exact state is this project's.
    """
    numbers = (beta, steps, act, state, frac_bits)
    if not is_compiling():
        check_forward(u, w, z0, *numbers)
        numbers = (float(beta), int(steps), act, state, int(frac_bits))
    return _overload(implementation, w, _FORWARD)(u, w, z0, *numbers)


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
    implementation: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of u, w and z0 from those of y and z, by walking the solve back.

    grad_y and grad_z are [rows, d], float32. y and z are the states at the end, those of fixed for
    an exact one, which stay as they are; digits are as ``linear_cell_forward`` left them. The rest
    are its arguments.

    Returns:
        grad_u: in u's dtype, added up in float32 over the steps.
        grad_w: float32, whatever w's dtype; added up over steps and rows in a fixed order.
        grad_z0: float32.
        distance: float32 [1], the farthest that an element of y or z came back from its start: 0
            for an exact state, if u, w and z0 are those of the forward pass. inf for NaN.
        lost: int32 [1], how many rows did not come back.

    Lost rows have NaN for gradients, and then so has all of grad_w: they would be wrong. An exact
    state has to come back bit for bit; a float32 row to within 1e-3 of the largest number in its
    start and end.

    Memory, in one launch: y, z, grad_y, grad_z, u, z0 and digits are read once, grad_u and grad_z0
    written once; with bfloat16 u, beta 0.5 and 8 steps 32 bytes per element.

    Raises:
        ValueError, TypeError: an argument is not as above.

    Source: arXiv 2509.12917, the backward pass of the reversible solver.
    """
    numbers = (beta, steps, act, state, frac_bits)
    tensors = (grad_y, grad_z, y, z, digits, u, w, z0)
    if not is_compiling():
        check_backward(*tensors, *numbers)
        numbers = (float(beta), int(steps), act, state, int(frac_bits))
    return _overload(implementation, w, _BACKWARD)(*tensors, *numbers)


# ---- the choice of an implementation ---------------------------------------------------------

IMPLEMENTATIONS = {"composite": NAMESPACE, "triton": f"{NAMESPACE}_triton"}
"""The implementations, and where torch.ops holds the ops of each.

composite  matmuls and the half-step ops: the definition, on every device
triton     one launch for all steps, for cells of TRITON_FEATURES on a GPU of ARCHITECTURES; sums
           with w in float32 are of products in three TF32, which err as float32 does
"""

TRITON_FEATURES = {BF16: (32, 64, 128), F16: (32, 64, 128), F32: (32, 64)}
"""The numbers of features that the Triton kernels take, by dtype of w."""

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
"""Where the Triton kernels fit into shared memory and registers; they were compiled, not run."""

FASTEST: dict[tuple[str, int, torch.dtype], str] = {}
"""(architecture such as "sm_90", features, dtype of w) -> what is fastest there, if that is not the
composite. Each entry stands beside the stored result that says so; none was measured yet."""


def choose(implementation: str | None, w: Tensor) -> str:
    """The implementation that runs for `w`.

    The one that is named, here or as the backend ("triton"); otherwise that of FASTEST, or the
    composite. ValueError for an unknown name, or for one that cannot run, with what it takes.
    """
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        _one_of(_FORWARD, "implementation", implementation, tuple(IMPLEMENTATIONS))
    if implementation is None and backends.chosen == "triton":
        implementation = "triton"
    if implementation == "triton" and not is_compiling() and (reason := why_not("triton", w)):
        raise ValueError(f"{_FORWARD}: implementation 'triton' cannot run: {reason}")
    return implementation or fastest(w) or "composite"


def why_not(implementation: str, w: Tensor) -> str | None:
    """Why an implementation cannot run for `w`, with what it takes; None where it can."""
    if implementation == "composite":
        return None
    if w.shape[0] not in TRITON_FEATURES.get(w.dtype, ()):
        kinds = "; ".join(
            f"{', '.join(map(str, features))} in {dtype}"
            for dtype, features in TRITON_FEATURES.items()
        )
        return f"it takes features of {kinds}, got {w.shape[0]} in {w.dtype}; take 'composite'"
    if reason := backends.why_not("triton", w.device.type):
        return f"{reason}; 'composite' runs anywhere"
    if w.device.type == "cuda" and first_use.architecture(w.device) not in ARCHITECTURES:
        got = first_use.architecture(w.device)
        return f"it takes GPUs of {', '.join(ARCHITECTURES)}, got {got}; take 'composite'"
    return None


_tried: set[tuple[Any, ...]] = set()
_lock = threading.RLock()


def _try_first(w: Tensor, act: str, state: str) -> None:
    """Try the Triton kernels for such cells on the device of `w`, unless that was done.

    RuntimeError if they differ from the composite or do not come back, or in a CUDA graph's
    capture, which the trial would break.
    """
    key = (w.device.index, w.dtype, w.shape[0], act, state)
    if w.device.type != "cuda" or key in _tried:
        return
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{_FORWARD}: the Triton kernel tries itself at its first use on a device, which "
            "cannot happen while a CUDA graph is captured; call it once before the capture"
        )
    with _lock:
        if reason := _triton().differs(w.device, *key[1:]):
            raise RuntimeError(
                f"{_FORWARD}: the Triton kernel must not be used on {w.device}: {reason}; take "
                "implementation='composite', and report this"
            )
        _tried.add(key)


def fastest(w: Tensor) -> str | None:
    """The entry of FASTEST for `w` on its device, if there is one."""
    if not FASTEST or w.device.type != "cuda":
        return None
    return FASTEST.get((first_use.architecture(w.device), w.shape[0], w.dtype))


# ---- checks ----------------------------------------------------------------------------------


def check_forward(
    u: Tensor,
    w: Tensor,
    z0: Tensor,
    beta: float,
    steps: int,
    act: str,
    state: str,
    frac_bits: int,
    op: str = _FORWARD,
) -> None:
    """Refuse what is not as ``linear_cell_forward`` describes it."""
    _check_not_forward_mode(op)
    check_tensors(op, u=u, w=w, z0=z0)
    _check_numbers(op, beta, steps, act, state, frac_bits)
    check_dtype(op, "w", w, (BF16, F16, F32))
    if w.dim() != 2 or w.shape[0] != w.shape[1]:
        remedy = "give the one that maps the state to itself; the input's is part of u"
        refuse(ValueError, op, "w", "a square matrix", f"shape {list(w.shape)}", remedy)
    check_dtype(op, "z0", z0, (F32,))
    if z0.dim() != 2 or z0.shape[1] != w.shape[0]:
        expected = f"shape [rows, {w.shape[0]}], of as many columns as w has"
        remedy = "flatten what stands before its last dimension"
        refuse(ValueError, op, "z0", expected, f"shape {list(z0.shape)}", remedy)
    check_dtype(op, "u", u, (w.dtype,), ", the dtype of w")
    check_shape(op, "u", u, z0, "z0")
    for name, t in (("u", u), ("w", w)):
        check_device(op, name, t, z0, "z0")


def _check_not_forward_mode(op: str) -> None:
    """Refuse to run inside of forward mode: inside of torch.func.jvp an op sees no tangents.

    torch would take the derivative for zero.
    """
    if forward_ad._current_level >= 0:
        raise RuntimeError(
            f"{op}: expected to be differentiated by backward() or torch.autograd.grad, got a "
            "call inside of forward mode (torch.func.jvp, jacfwd, dual_level); call it outside, or "
            "use torch_revdeq.solve with adjoint='backprop' and state=torch.float32"
        )


def _check_numbers(op: str, beta: float, steps: int, act: str, state: str, frac_bits: int) -> None:
    _one_of(op, "act", act, ACTS)
    _one_of(op, "state", state, STATES)
    check_beta(op, "beta", beta, exact=state == "exact")
    for name, value, least, most in (
        ("steps", steps, 1, None),
        ("frac_bits", frac_bits, 0, 30),
    ):
        if isinstance(value, bool) or not isinstance(value, (Integral, torch.SymInt)):
            kind = type(value).__name__
            refuse(TypeError, op, name, "a Python integer", kind, f"convert it with int({name})")
        if value < least or (most is not None and value > most):
            expected = f"an integer from {least}" + (f" to {most}" if most is not None else " on")
            remedy = "20 suits most" if name == "frac_bits" else "a step evaluates f twice"
            refuse(ValueError, op, name, expected, str(value), remedy)


def _one_of(op: str, name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        expected = "one of " + ", ".join(map(repr, choices))
        remedy = "with another f use torch_revdeq.solve" if name == "act" else "choose one of them"
        refuse(ValueError, op, name, expected, repr(value), remedy)


def check_backward(
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
    act: str,
    state: str,
    frac_bits: int,
    shape: tuple[int, ...] | None = None,
) -> None:
    """Refuse what is not as ``linear_cell_backward`` describes it; digits of another `shape`."""
    op = _BACKWARD
    check_tensors(op, grad_y=grad_y, grad_z=grad_z, y=y, z=z, digits=digits)
    check_forward(u, w, z0, beta, steps, act, state, frac_bits, op)
    kept = torch.int32 if state == "exact" else F32
    rows = (("grad_y", grad_y, F32), ("grad_z", grad_z, F32), ("y", y, kept), ("z", z, kept))
    for name, t, dtype in rows:
        check_dtype(op, name, t, (dtype,))
        check_device(op, name, t, z0, "z0")
        check_shape(op, name, t, z0, "z0")
    check_dtype(op, "digits", digits, (torch.uint8,))
    check_device(op, "digits", digits, z0, "z0")
    if shape is not None and digits.shape != shape:
        expected = f"shape {list(shape)} for these steps and this beta"
        remedy = "give those that linear_cell_forward returned, of the same implementation"
        refuse(ValueError, op, "digits", expected, str(list(digits.shape)), remedy)


# ---- the ops of an implementation ------------------------------------------------------------


def _triton() -> ModuleType:
    return importlib.import_module(".triton.cell_launch", __package__)


def _ready(namespace: str, w: Tensor, act: str, state: str) -> None:
    """What a Triton kernel needs besides arguments that are as they should be."""
    if namespace == NAMESPACE:
        return
    if reason := why_not("triton", w):
        raise ValueError(f"{_FORWARD}: implementation 'triton' cannot run: {reason}")
    _try_first(w, act, state)


def _digits_shape(module: ModuleType, args: tuple[Any, ...]) -> tuple[int, ...]:
    """The shape of the digits, from z0 and the numbers behind it."""
    z0, beta, steps, _, state, _ = args
    return module.digits_shape(z0, beta, steps) if state == "exact" else (0,)


def _define(namespace: str, load: Callable[[], ModuleType]) -> None:
    """Both ops of the implementation in a module, in the given namespace of torch.ops."""

    def forward(*args: Any) -> Any:
        check_forward(*args)
        _ready(namespace, args[1], *args[5:7])
        with torch.no_grad():
            return load().forward(*map(_contiguous, args))

    def fake_forward(*args: Any) -> Any:
        check_forward(*args)
        z0, shape = args[2], _digits_shape(load(), args[2:])
        fixed = (2, *z0.shape) if args[6] == "exact" else (0,)
        return (
            *(z0.new_empty(z0.shape), z0.new_empty(z0.shape)),
            z0.new_empty(fixed, dtype=torch.int32),
            z0.new_empty(shape, dtype=torch.uint8),
            z0.new_empty(1, dtype=torch.int32),
        )

    def backward(*args: Any) -> Any:
        check_backward(*args, shape=_digits_shape(load(), args[7:]))
        _ready(namespace, args[6], *args[10:12])
        with torch.no_grad():
            return load().backward(*map(_contiguous, args))

    def fake_backward(*args: Any) -> Any:
        check_backward(*args, shape=_digits_shape(load(), args[7:]))
        u, w, z0 = args[5:8]
        grad_w, grad_z0 = z0.new_empty(w.shape), z0.new_empty(z0.shape)
        lost = z0.new_empty(1, dtype=torch.int32)
        return u.new_empty(u.shape), grad_w, grad_z0, z0.new_empty(1), lost

    ops = {_FORWARD: (forward, fake_forward), _BACKWARD: (backward, fake_backward)}
    for name, (function, fake) in ops.items():
        schema = _SCHEMAS[name]
        op = torch.library.custom_op(
            f"{namespace}::{name}", function, mutates_args=(), schema=schema
        )
        op.register_fake(fake)
        if name == _FORWARD:
            op.register_autograd(_differentiate(namespace), setup_context=_keep)
        else:
            op.register_autograd(_refuse_second)


def _contiguous(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) else value


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """What the way back needs: the arguments, and the states at the end."""
    y, z, fixed, digits, _ = output
    ctx.exact = inputs[6] == "exact"
    states = (fixed,) if ctx.exact else (y, z)
    ctx.save_for_backward(*inputs[:3], digits, *states)
    ctx.numbers = inputs[3:]


def _differentiate(namespace: str) -> Callable[..., Any]:
    def backward(ctx: Any, *arrived: Tensor | None) -> Any:
        u, w, z0, digits, *states = ctx.saved_tensors
        y, z = states[0] if ctx.exact else states
        grads = [torch.zeros_like(z0) if g is None else g for g in arrived[:2]]
        if torch.is_grad_enabled():
            _refuse_second(ctx)
        op = getattr(getattr(torch.ops, namespace), _BACKWARD).default
        of_u, of_w, of_z0, *_ = op(*grads, y, z, digits, u, w, z0, *ctx.numbers)
        return of_u, of_w.to(w.dtype), of_z0, *(None,) * len(ctx.numbers)

    return backward


def _refuse_second(ctx: Any, *grads: Any) -> Any:
    """Stands for the derivative of the derivative, which there is not."""
    raise RuntimeError(
        "linear_cell_backward: expected to be differentiated once, got a derivative of the "
        "derivative (create_graph=True, torch.func); use torch_revdeq.solve with "
        "adjoint='backprop' and state=torch.float32"
    )


def _overload(implementation: str | None, w: Tensor, name: str) -> Callable[..., Any]:
    namespace = IMPLEMENTATIONS[choose(implementation, w)]
    return getattr(getattr(torch.ops, namespace), name).default


_define(IMPLEMENTATIONS["composite"], lambda: composite)
_define(IMPLEMENTATIONS["triton"], _triton)
