"""Registration with torch: fake kernels, grad and version bookkeeping, ops of Python backends.

The schemas come from ``csrc/ops.h``. ``op.py`` implements a call from Python; this module adds the
same checks for callers of ``torch.ops.revdeq``, one dispatch layer above the kernels
(ADInplaceOrView, which torch's own in-place ops use). Tensors created in inference mode skip that
layer; for them, invalid arguments raise the terse C++ messages.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import is_grad_enabled

from . import backends, first_use
from .op import NAMESPACE, OPS, PLAIN, Op, increment_version, leaves_of

PYTHON_BACKENDS = ("triton", "reference")

_after_guard = torch._C._after_ADInplaceOrView_keyset
_libraries: list[torch.library.Library] = []  # an op exists as long as the library that defined it


def register() -> None:
    """Complete the compiled ops, and define the ops of the Python backends with the same schemas.

    An op that the compiled extension lacks has no schema, nor has any op without the extension. The
    public functions then still run on the Python backends, outside of torch.compile.
    """
    # As in csrc/register.h: torch.ops picks the first overload that accepts a tensor as beta.
    in_order = sorted(OPS.items(), key=lambda item: item[1].overload_name != "channels")
    ops = {label: op for label, op in in_order if _is_declared(op)}
    if not ops:
        return
    _complete(ops, NAMESPACE, backends.COMPILED, torch.library.Library(NAMESPACE, "IMPL"))
    for backend in PYTHON_BACKENDS:
        library = torch.library.Library(f"{NAMESPACE}_{backend}", "DEF")
        for label, op in ops.items():
            schema = str(op.overload("cpu")._schema)
            library.define(schema.removeprefix(f"{NAMESPACE}::"))
            library.impl(label, partial(op.run, backend), "CompositeExplicitAutograd")
        _complete(ops, f"{NAMESPACE}_{backend}", (backend,), library)


def _is_declared(op: Op) -> bool:
    packet = getattr(getattr(torch.ops, NAMESPACE), op.name, None)
    return packet is not None and (op.overload_name or "default") in packet.overloads()


def _complete(
    ops: dict[str, Op], namespace: str, served: tuple[str, ...], library: torch.library.Library
) -> None:
    for label, op in ops.items():
        op.namespaces |= dict.fromkeys(served, namespace)
        op.cpu = op.overload("cpu")._op if "cpu" in served else op.cpu
        register_fake(f"{namespace}::{label}", op.fake, library)
        library.impl(label, _guard(op, served), "ADInplaceOrView", with_keyset=True)
        library.impl(label, _refuse_negation(op), "Negative")
    _libraries.append(library)


def register_fake(name: str, fake: Callable[..., Any], library: torch.library.Library) -> None:
    """``torch.library.register_fake``, without its search for the file that called it.

    For all ops, the search took a tenth of the time of the import. What is called here is private
    to torch: a torch that has changed it gets the public function.
    """
    try:
        registry: Any = torch._library.simple_registry  # type: ignore[attr-defined]
        holder = registry.singleton.find(name).fake_impl
        holder.register(fake, __file__, library, allow_override=True)
    except (AttributeError, TypeError):
        torch.library.register_fake(name, fake, lib=library)


def _guard(op: Op, served: tuple[str, ...]) -> Callable[..., Any]:
    """The layer above the kernels of an op that is called through torch.ops.

    An overload of a Python backend is made when it is called: for all of them it takes 3 ms.
    """
    arguments = op.overload("cpu")._schema.arguments  # as in every namespace
    written = [
        (place, argument.name)
        for place, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]

    def guard(keyset: torch._C.DispatchKeySet, *args: Any, **kw: Any) -> Any:
        tensors = list(leaves_of((*args, *kw.values())))
        if is_grad_enabled() and any(t.requires_grad for t in tensors):
            op.refuse_grad()
        if not tensors:  # empty lists
            _refuse(op, args, kw)
        lead = tensors[0]
        if type(lead) in PLAIN:
            backend = served[0] if len(served) == 1 else lead.device.type
            first_use.require(backend, op, lead.device, args, kw)
        try:
            result = op.overload(served[0]).redispatch(keyset & _after_guard, *args, **kw)
        except RuntimeError:
            _check(op, args, kw)  # the message of a compiled op is terse
            raise
        values = (args[i] if i < len(args) else kw.get(name) for i, name in written)
        increment_version(list(leaves_of(values)))
        return result

    return guard


def _refuse_negation(op: Op) -> Callable[..., Any]:
    """The op on tensors with the negative bit: raises, because it would write to a copy."""
    return lambda *args, **kw: _refuse(op, args, kw)


def _refuse(op: Op, args: tuple[Any, ...], kw: dict[str, Any]) -> NoReturn:
    """Raise the error of the checks, or else that torch cannot call the op."""
    _check(op, args, kw)
    raise RuntimeError(f"{op.name}: torch cannot pass these arguments to a kernel")


def _check(op: Op, args: tuple[Any, ...], kw: dict[str, Any]) -> None:
    """Raise the error of the checks as a RuntimeError, as torch does for any kernel's error."""
    try:
        op.check(*args, **kw)
    except (TypeError, ValueError) as error:
        raise RuntimeError(str(error)) from error
