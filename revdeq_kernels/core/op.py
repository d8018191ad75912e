"""A call of an op from Python: autograd's bookkeeping, the choice of a backend, and the kernel.

A C++ in-place op does not tell autograd that it wrote: a tensor that autograd saved and an op then
overwrote would give a wrong gradient without a word. So every call refuses tensors that require
grad, and counts up the versions of what it writes. (Calls of ``torch.ops.revdeq`` have the same
from ``registration.py``, one layer above the kernels; these here go below, which saves two
microseconds.)
"""

from __future__ import annotations

import operator
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, is_grad_enabled
from torch.compiler import is_compiling

from ..ops import checks
from . import backends, first_use
from . import lists as list_checks

NAMESPACE = "revdeq"
PLAIN = (Tensor, torch.nn.Parameter)
"""The types of tensors whose data can be looked at; others are fake or traced."""

increment_version = torch._C._increment_version
_below_guard = torch._C._AutoDispatchBelowADInplaceOrView


class Op:
    """One overload of an op: its name, its checks, and what runs it, by backend."""

    def __init__(
        self,
        name: str,
        check: checks.Check,
        differentiable: str,
        output: str = "cast",
        numbers: dict[int, type] | None = None,
    ) -> None:
        """Describe the op.

        `differentiable` is what an error recommends where a gradient is wanted, `output` the name
        of the optional tensor that is written, `numbers` the types of what is no tensor, by place.
        """
        self.name, _, self.overload_name = name.partition(".")
        self.label = name
        self.check_arguments = check
        self.check: Callable[..., Any] = partial(check, self.name)
        self.differentiable = differentiable
        self.output = output
        self.numbers = tuple((numbers or {}).items())
        self.overloads: dict[str, Any] = {}
        self.cpu: Any = None  # what overloads["cpu"] calls, where the extension is built
        self.lists: Op | None = None  # this op on lists of leaves
        self.channels: Op | None = None  # this op where beta is a tensor

    def __call__(
        self,
        written: tuple[Any, ...],
        read: tuple[Any, ...],
        args: tuple[Any, ...],
        output: Any = None,
    ) -> Any:
        """Run the op on the backend chosen for the device of its first argument.

        `written` and `read` are the tensors among `args`; `output` is the optional tensor that the
        op writes as well. A call costs as much here as the kernel of a small tensor takes, hence
        the short cuts.
        """
        lead = args[0]
        plain = type(lead) in PLAIN
        if not plain and self.lists is not None and type(lead) in (list, tuple):
            return self.lists(written, read, args, output)
        kw: dict[str, Any] = {}
        if output is not None:
            kw[self.output] = output
            written = (*written, output)
        for place, kind in self.numbers:
            if type(args[place]) is not kind:
                if self.channels is not None and isinstance(args[place], Tensor):
                    return self.channels(written, (*read, args[place]), args, output)
                args = self.plain_numbers(args, kw)
                break
        if not plain or is_compiling():
            if not isinstance(lead, Tensor):
                self.check(*args, **kw)
            return self.overload(backends.select(lead.device.type))(*args, **kw)
        if is_grad_enabled():
            for tensor in (*written, *read):
                if getattr(tensor, "requires_grad", False):  # the checks refuse what is no tensor
                    self.refuse_grad()
        result = self.run_chosen(lead, args, kw)
        increment_version(written)
        return result

    def plain_numbers(self, args: tuple[Any, ...], kw: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments with every number as Python's own, so that all backends see the same.

        torch would take a tensor for a number, and drop its gradient; NumPy's numbers compute in
        a precision of their own.
        """
        if is_compiling():  # a number can be symbolic
            return args
        self.check(*args, **kw)
        kinds: dict[type, Callable[[Any], Any]] = {float: float, int: operator.index}
        plain = list(args)
        for place, kind in self.numbers:
            plain[place] = kinds.get(kind, lambda value: value)(plain[place])
        return tuple(plain)

    def run_chosen(self, lead: Tensor, args: tuple[Any, ...], kw: dict[str, Any]) -> Any:
        """Run on the backend that is chosen for the device of `lead`."""
        if lead.is_cpu and backends.chosen is None and self.cpu is not None:
            return self.run_compiled(self.cpu, args, kw)
        backend = backends.select(lead.device.type)
        first_use.require(backend, self.label, lead.device, partial(self.run, backend))
        return self.run(backend, *args, **kw)

    def run(self, backend: str, *args: Any, **kw: Any) -> Any:
        """Check the arguments and run, without a look at autograd."""
        if backend in backends.COMPILED:
            return self.run_compiled(self.overload(backend)._op, args, kw)
        self.check(*args, **kw)
        with torch.no_grad():
            return self.run_python(backend, args, kw)

    def run_python(self, backend: str, args: tuple[Any, ...], kw: dict[str, Any]) -> Any:
        """Run a Python backend on arguments that were checked."""
        return getattr(backends.implementation(backend), self.name)(*args, **kw)

    def run_compiled(self, call: Any, args: tuple[Any, ...], kw: dict[str, Any]) -> Any:
        """Run a kernel behind torch.ops, which checks its arguments itself."""
        try:
            with _below_guard():
                try:
                    return call(*args, **kw)
                except Exception as error:
                    _forget_frames(error)
                    raise
        except RuntimeError as error:
            self.check(*args, **kw)  # raises the same as a ValueError or TypeError
            if "aten::empty_like" in str(error):  # the stable ABI keeps torch's own words to itself
                raise torch.OutOfMemoryError(
                    f"{self.name}: torch had no memory left for the result, or for a copy of f in "
                    "the state's memory order"
                ) from error
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


def _forget_frames(error: BaseException | None) -> None:
    """Let go of the frames that an error keeps, while the guard around a call is still there.

    torch prints an argument that it cannot take. Where that fails, the frames hold a guard of
    torch's own; freed later, it would restore the dispatch keys of now, and with them a thread in
    which autograd records nothing.
    """
    while error is not None:
        # Python 3.10 keeps the traceback itself while an error is handled: its frames are emptied.
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


class ListOp(Op):
    """The overload of an op that takes lists of leaves in place of its tensors."""

    def __init__(self, op: Op) -> None:
        """Take checks and words from the op on one leaf."""
        super().__init__(
            f"{op.name}.list", op.check_arguments, op.differentiable, op.output, dict(op.numbers)
        )
        self.check = partial(list_checks.check_leaves, op.check_arguments, op.name)

    def __call__(
        self,
        written: tuple[Any, ...],
        read: tuple[Any, ...],
        args: tuple[Any, ...],
        output: Any = None,
    ) -> Any:
        """As ``Op.__call__``; a tuple of leaves is as good as a list."""
        kw = {} if output is None else {self.output: output}
        args = tuple(list(a) if isinstance(a, tuple) else a for a in args)
        leads = [t for t in args[0] if isinstance(t, Tensor)]
        if not leads or len(leads) < len(args[0]):
            self.check(*args, **kw)
        if any(type(args[place]) is not kind for place, kind in self.numbers):
            args = self.plain_numbers(args, kw)
        if is_compiling() or any(type(lead) not in PLAIN for lead in leads):
            return self.overload(backends.select(leads[0].device.type))(*args, **kw)
        written_leaves = list(leaves_of((*written, output)))
        if is_grad_enabled():
            for tensor in (*written_leaves, *leaves_of(read)):
                if tensor.requires_grad:
                    self.refuse_grad()
        result = self.run_chosen(leads[0], args, kw)
        increment_version(written_leaves)
        return result

    def run_python(self, backend: str, args: tuple[Any, ...], kw: dict[str, Any]) -> Any:
        """One launch for all leaves, or one leaf after the other in the reference."""
        module = backends.implementation(backend)
        if backend == "reference":
            return module.on_lists(self.name)(*args, **kw)
        return getattr(module, self.name)(*args, **kw)


def leaves_of(values: Iterable[Any]) -> Iterable[Tensor]:
    """The tensors among the values and in their lists."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from (t for t in value if isinstance(t, Tensor))
        elif isinstance(value, Tensor):
            yield value
