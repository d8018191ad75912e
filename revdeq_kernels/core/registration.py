"""The ops as torch sees them: fake kernels, grad and version bookkeeping, ops of Python backends.

The schemas come from ``csrc/ops.h``. What a call from Python does is in ``op.py``; here
the same is put one dispatch layer above the kernels (ADInplaceOrView, where torch's own in-place
ops do it), for callers of ``torch.ops.revdeq``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import is_grad_enabled

from ..ops import checks, pass_checks
from . import backends, first_use
from . import lists as list_checks
from .op import NAMESPACE, PLAIN, ListOp, Op, increment_version, leaves_of

PYTHON_BACKENDS = ("triton", "reference")

_after_guard = torch._C._after_ADInplaceOrView_keyset
_libraries: list[torch.library.Library] = []  # an op lives as long as the library that defined it

_UPDATE = "torch.lerp(state, f, beta)"
_INVERT = "(state - beta * f) / (1 - beta)"
_ROUND = "x + (rounded - x).detach(), which lets the gradient through unchanged"
_PASS = "the updates themselves, unrolled"
_NORMS = "(z - f).norm() and f.norm()"

_EXACT = {3: float, 4: int, 5: int}
"""beta, frac_bits and tie behind a state, its digits and f."""

_ON_ONE_LEAF = (
    Op("update_", checks.half_step, _UPDATE, numbers={2: float}),
    Op("invert_", checks.half_step, _INVERT, numbers={2: float}),
    Op("adjoint_", pass_checks.adjoint, "scale * grad + vjp", numbers={2: float, 3: float}),
    Op("update_exact_", checks.update_exact, _UPDATE, numbers={4: float, 5: int, 6: int}),
    Op("invert_exact_", checks.invert_exact, _INVERT, numbers=_EXACT),
    Op("invert_z_adjoint_y_", pass_checks.carry_y, _PASS, numbers={2: float}),
    Op("invert_y_adjoint_z_", pass_checks.carry_z, _PASS, numbers={2: float, 5: float}),
    Op("invert_y_adjoint_z0_", pass_checks.carry_z0, _PASS, numbers={2: float}),
    Op("invert_z_adjoint_y_exact_", pass_checks.carry_y_exact, _PASS, numbers=_EXACT),
    Op("invert_y_adjoint_z_exact_", pass_checks.carry_z_exact, _PASS, numbers=_EXACT | {8: float}),
    Op("invert_y_adjoint_z0_exact_", pass_checks.carry_z0_exact, _PASS, numbers=_EXACT),
    Op("quantize", checks.quantize, _ROUND, output="flag", numbers={1: int}),
    Op("dequantize", checks.dequantize, _ROUND, numbers={1: int, 2: torch.dtype}),
    Op("residual", checks.residual, _NORMS),
)


def _with_overloads() -> dict[str, Op]:
    ops = {op.label: op for op in _ON_ONE_LEAF}
    for op in _ON_ONE_LEAF:
        op.lists = ops[f"{op.name}.list"] = ListOp(op)
    for name in ("update_", "invert_"):
        op = Op(f"{name}.channels", checks.channel_step, ops[name].differentiable)
        ops[name].channels = ops[op.label] = op
    return ops


OPS = _with_overloads()
"""Every overload of every op, by its name in the schema ("update_", "update_.list", ...)."""


def register() -> None:
    """Complete the compiled ops, and define those of the Python backends with the same schemas.

    Without the compiled extension there are no schemas: the public functions then still run on the
    Python backends, outside of torch.compile.
    """
    namespace = getattr(torch.ops, NAMESPACE)
    if not hasattr(namespace, next(iter(OPS))):
        return
    _complete(NAMESPACE, backends.COMPILED, torch.library.Library(NAMESPACE, "IMPL"))
    for backend in PYTHON_BACKENDS:
        library = torch.library.Library(f"{NAMESPACE}_{backend}", "DEF")
        for label, op in OPS.items():
            schema = str(_overload(NAMESPACE, op)._schema)
            library.define(schema.removeprefix(f"{NAMESPACE}::"))
            library.impl(label, partial(op.run, backend), "CompositeExplicitAutograd")
        _complete(f"{NAMESPACE}_{backend}", (backend,), library)


def _overload(namespace: str, op: Op) -> Any:
    return getattr(getattr(getattr(torch.ops, namespace), op.name), op.overload_name or "default")


def _complete(namespace: str, served: tuple[str, ...], library: torch.library.Library) -> None:
    for label, op in OPS.items():
        overload = _overload(namespace, op)
        op.overloads |= dict.fromkeys(served, overload)
        op.cpu = op.overloads["cpu"]._op if "cpu" in served else op.cpu
        torch.library.register_fake(f"{namespace}::{label}", _fake(op), lib=library)
        library.impl(label, _guard(op, overload, served), "ADInplaceOrView", with_keyset=True)
        library.impl(label, _refuse_negation(op), "Negative")
    _libraries.append(library)


def _guard(op: Op, overload: Any, served: tuple[str, ...]) -> Callable[..., Any]:
    """What stands above the kernels of an op that is called through torch.ops."""
    arguments = overload._schema.arguments
    written = [
        (place, argument.name)
        for place, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]

    def guard(keyset: torch._C.DispatchKeySet, *args: Any, **kw: Any) -> Any:
        tensors = list(leaves_of((*args, *kw.values())))
        if is_grad_enabled() and any(t.requires_grad for t in tensors):
            op.refuse_grad()
        if not tensors:  # lists that are empty
            _refuse(op, args, kw)
        lead = tensors[0]
        if type(lead) in PLAIN:
            backend = served[0] if len(served) == 1 else lead.device.type
            first_use.require(backend, op.label, lead.device, partial(op.run, backend))
        try:
            result = overload.redispatch(keyset & _after_guard, *args, **kw)
        except RuntimeError:
            _check(op, args, kw)  # a compiled op refuses in few words
            raise
        values = (args[i] if i < len(args) else kw.get(name) for i, name in written)
        increment_version(list(leaves_of(values)))
        return result

    return guard


def _refuse_negation(op: Op) -> Callable[..., Any]:
    """What stands for the op where a tensor negates another's memory: a copy would be written."""
    return lambda *args, **kw: _refuse(op, args, kw)


def _refuse(op: Op, args: tuple[Any, ...], kw: dict[str, Any]) -> NoReturn:
    """Raise what the checks say, or that torch has no way to call the op."""
    _check(op, args, kw)
    raise RuntimeError(f"{op.name}: torch cannot hand these arguments to a kernel")


def _check(op: Op, args: tuple[Any, ...], kw: dict[str, Any]) -> None:
    """Raise what the checks say, as the error that torch makes of any."""
    try:
        op.check(*args, **kw)
    except (TypeError, ValueError) as error:
        raise RuntimeError(str(error)) from error


def _fake(op: Op) -> Callable[..., Any]:
    """The op on tensors without data: the checks, and the shape of what it returns."""
    results: dict[str, Callable[..., Any]] = {
        "quantize.list": lambda *_: None,
        "quantize": lambda x, *_: torch.empty_like(x, dtype=torch.int32),
        "dequantize": lambda x, _, dtype: torch.empty_like(x, dtype=dtype),
        "residual": lambda z, _: z.new_empty(2, dtype=torch.float64),
    }
    make = results.get(op.label) or results.get(op.name, lambda *_: None)

    def fake(*args: Any, **kw: Any) -> Any:
        op.check(*args, **kw)
        if not isinstance(op, ListOp):
            return make(*args)
        leaves = [make(*list_checks.leaf_of(args, k)) for k in range(len(args[0]))]
        if leaves[0] is None:
            return None
        return torch.stack(leaves) if op.name == "residual" else leaves

    return fake
