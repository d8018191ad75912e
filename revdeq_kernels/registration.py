"""The ops as torch sees them: fake kernels, grad and version bookkeeping, ops of Python backends.

The schemas come from ``csrc/schema.cpp``. A C++ in-place op does not tell autograd that it wrote: a
tensor that autograd saved and an op then overwrote would give a wrong gradient without a word. So
one dispatch layer above the kernels (ADInplaceOrView, where torch's own in-place ops do the same)
each op refuses tensors that require grad and counts up the versions of what it writes. The public
functions do both themselves and go below that layer, which saves two microseconds per call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, is_grad_enabled
from torch.compiler import is_compiling

from . import backends, checks, first_use

NAMESPACE = "revdeq"
PYTHON_BACKENDS = ("triton", "reference")

_below_guard = torch._C._AutoDispatchBelowADInplaceOrView
_after_guard = torch._C._after_ADInplaceOrView_keyset
_increment_version = torch._C._increment_version
_PLAIN = (Tensor, torch.nn.Parameter)
_libraries: list[torch.library.Library] = []  # an op lives as long as the library that defined it


class Op:
    """One op: its name, its checks, and its overloads by backend."""

    def __init__(
        self,
        name: str,
        check: Callable[..., None],
        differentiable: str,
        output: str = "cast",
        numbers: tuple[int, ...] = (),
    ) -> None:
        """Describe the op.

        `differentiable` is what an error recommends where a gradient is wanted, `output` the name
        of the optional tensor that is written, `numbers` the places of the real numbers.
        """
        self.name = name
        self.numbers = numbers
        self.output = output
        self.check = check
        self.differentiable = differentiable
        self.overloads: dict[str, Any] = {}
        self.cpu: Any = None  # what overloads["cpu"] calls, where the extension is built

    def __call__(
        self,
        written: tuple[Tensor, ...],
        read: tuple[Tensor, ...],
        args: tuple[Any, ...],
        output: Tensor | None = None,
    ) -> Any:
        """Run the op on the backend chosen for the device of its first argument.

        `written` and `read` are the tensors among `args`; `output` is the optional tensor that the
        op writes as well. A call costs as much here as the kernel of a small tensor takes, hence
        the short cuts.
        """
        kw: dict[str, Any] = {}
        if output is not None:
            kw[self.output] = output
            written = (*written, output)
        lead = args[0]
        if is_compiling() or type(lead) not in _PLAIN:
            if not isinstance(lead, Tensor):
                self.check(*args, **kw)
            return self.overload(backends.select(lead.device.type))(*args, **kw)
        if is_grad_enabled():
            for tensor in (*written, *read):
                if getattr(tensor, "requires_grad", False):  # the checks refuse what is no tensor
                    self.refuse_grad()
        for place in self.numbers:
            if type(args[place]) is not float:  # torch would take a tensor, and drop its gradient
                self.check(*args, **kw)
        if lead.is_cpu and backends.chosen is None and self.cpu is not None:
            result = self.run_compiled(self.cpu, args, kw)
        else:
            backend = backends.select(lead.device.type)
            first_use.require(backend, self.name, lead.device, partial(self.run, backend))
            result = self.run(backend, *args, **kw)
        _increment_version(written)
        return result

    def run(self, backend: str, *args: Any, **kw: Any) -> Any:
        """Check the arguments and run, without a look at autograd."""
        if backend in backends.COMPILED:
            return self.run_compiled(self.overload(backend)._op, args, kw)
        self.check(*args, **kw)
        with torch.no_grad():
            return getattr(backends.implementation(backend), self.name)(*args, **kw)

    def run_compiled(self, call: Any, args: tuple[Any, ...], kw: dict[str, Any]) -> Any:
        """Run a kernel behind torch.ops, which checks its arguments itself."""
        try:
            with _below_guard():
                return call(*args, **kw)
        except RuntimeError:
            self.check(*args, **kw)  # raises the same as a ValueError or TypeError
            raise

    def overload(self, backend: str) -> Any:
        """The torch op of a backend; RuntimeError where the compiled extension is missing."""
        if backend not in self.overloads:
            reason = backends.why_not("cpu")
            raise RuntimeError(f"torch.ops.{NAMESPACE}.{self.name} is not registered: {reason}")
        return self.overloads[backend]

    def refuse_grad(self) -> NoReturn:
        """Raise where autograd would have to differentiate this op."""
        raise RuntimeError(
            f"{self.name}: an argument requires grad, and the op has no derivative; call it under "
            f"torch.no_grad(), or use what autograd can differentiate: {self.differentiable}"
        )


_UPDATE = "torch.lerp(state, f, beta)"
_INVERT = "(state - beta * f) / (1 - beta)"
_ROUND = "x + (rounded - x).detach(), which lets the gradient through unchanged"

OPS = {
    op.name: op
    for op in (
        Op("update_", partial(checks.half_step, "update_"), _UPDATE, numbers=(2,)),
        Op("invert_", partial(checks.half_step, "invert_"), _INVERT, numbers=(2,)),
        Op("adjoint_", checks.adjoint, "scale * grad + vjp", numbers=(2, 3)),
        Op("update_exact_", checks.update_exact, _UPDATE, numbers=(4,)),
        Op("invert_exact_", checks.invert_exact, _INVERT, numbers=(3,)),
        Op("quantize", checks.quantize, _ROUND, output="flag"),
        Op("dequantize", checks.dequantize, _ROUND),
    )
}


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
        for name, op in OPS.items():
            schema = str(getattr(namespace, name).default._schema)
            library.define(schema.removeprefix(f"{NAMESPACE}::"))
            library.impl(name, partial(op.run, backend), "CompositeExplicitAutograd")
        _complete(f"{NAMESPACE}_{backend}", (backend,), library)


def _complete(namespace: str, served: tuple[str, ...], library: torch.library.Library) -> None:
    for name, op in OPS.items():
        overload = getattr(getattr(torch.ops, namespace), name).default
        op.overloads |= dict.fromkeys(served, overload)
        op.cpu = op.overloads["cpu"]._op if "cpu" in served else op.cpu
        torch.library.register_fake(f"{namespace}::{name}", _fake(op), lib=library)
        library.impl(name, _guard(op, overload, served), "ADInplaceOrView", with_keyset=True)
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
        if is_grad_enabled():
            for value in (*args, *kw.values()):
                if isinstance(value, Tensor) and value.requires_grad:
                    op.refuse_grad()
        lead = args[0]
        if type(lead) in _PLAIN:
            backend = served[0] if len(served) == 1 else lead.device.type
            first_use.require(backend, op.name, lead.device, partial(op.run, backend))
        result = overload.redispatch(keyset & _after_guard, *args, **kw)
        tensors = (args[i] if i < len(args) else kw.get(name) for i, name in written)
        _increment_version([t for t in tensors if t is not None])
        return result

    return guard


def _fake(op: Op) -> Callable[..., Any]:
    """The op on tensors without data: the checks, and the shape of what it returns."""
    if op.name == "quantize":

        def fake(x: Tensor, *args: Any, **kw: Any) -> Any:
            op.check(x, *args, **kw)
            return torch.empty_like(x, dtype=torch.int32)
    elif op.name == "dequantize":

        def fake(x: Tensor, *args: Any, **kw: Any) -> Any:
            op.check(x, *args, **kw)
            return torch.empty_like(x, dtype=args[1])
    else:

        def fake(x: Tensor, *args: Any, **kw: Any) -> Any:
            op.check(x, *args, **kw)

    return fake
