"""A call of an op from Python: autograd's bookkeeping, the choice of a backend, and the kernel.

A C++ in-place op does not tell autograd what it wrote: if it overwrote a tensor that autograd had
saved, the gradient would be silently wrong. So every call raises if a tensor requires grad, and
increments the version counters of what it writes. (For callers of ``torch.ops.revdeq``,
``registration.py`` does the same one dispatch layer above the kernels; the calls here go below that
layer, which saves two microseconds.)
"""

from __future__ import annotations

import operator
import traceback
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, is_grad_enabled
from torch.compiler import is_compiling

from . import backends, first_use
from .checks import Check, check_overlap
from .lists import check_leaves, leaf_of
from .roles import DENSE, NUMBERS, Arguments, Dtypes
from .samples import compiled_number

NAMESPACE = "revdeq"
PLAIN = (Tensor, torch.nn.Parameter)
"""The types of tensors whose data can be read; others are fake or traced."""

OPS: dict[str, Op] = {}
"""All overloads of all ops, by their name in the schema ("update_", "update_.list", ...)."""

increment_version = torch._C._increment_version
_below_guard = torch._C._AutoDispatchBelowADInplaceOrView


class Op:
    """One overload of an op: its arguments, definition, checks, and how it is run."""

    def __init__(
        self,
        label: str,
        arguments: Arguments,
        define: Callable[..., Any],
        check: Check,
        *,
        instead: str,
        dtypes: Sequence[Dtypes],
        result: Callable[..., Tensor] | None = None,
        equation: str = "",
        moves: str = "",
        kernels: tuple[str, ...] = (),
    ) -> None:
        """Register the op in OPS.

        `define` is the op in plain torch, the "reference" backend. `instead` is the differentiable
        equivalent that the error for tensors requiring grad recommends. `dtypes` lists all
        supported combinations of the tensors' dtypes. `result` allocates what the op returns.
        `equation`, the bytes `moves` per element (derived from `arguments` for an op that returns
        nothing) and the CUDA `kernels` appear in the documentation.
        """
        self.label = label
        self.name, _, self.overload_name = label.partition(".")
        self.arguments, self.define, self.check_arguments = arguments, define, check
        self.instead, self.dtypes, self.result = instead, dtypes, result
        self.equation, self.kernels, self.moves = equation, kernels, moves or _moved(arguments)
        places = list(enumerate(a for a in arguments if not a.optional))
        self.numbers = tuple((k, NUMBERS[a.role]) for k, a in places if not a.is_tensor)
        self.tensors_of = _picker([k for k, a in places if a.is_tensor])
        compiled = ((k, compiled_number(a)) for k, a in places if not a.is_tensor)
        self.compiled_numbers: Sequence[tuple[int, Callable[[Any], Hashable]]]
        self.compiled_numbers = tuple((k, of) for k, of in compiled if of is not None)
        self.written = _picker([k for k, a in places if a.written])
        self.written_names = {a.name for a in arguments if a.written}
        self.output = next((a.name for a in arguments if a.optional), "")
        self.namespaces: dict[str, str] = {}  # of torch.ops, by backend
        self.overloads: dict[str, Any] = {}  # those that were used
        self.cpu: Any = None  # what overloads["cpu"] calls, where the extension is built
        self.channels: Op | None = None  # this op where beta is a tensor
        self.lists: Op | None = None  # this op on lists of leaves
        OPS[label] = self
        if not self.overload_name:
            ListOp(self)

    def check(self, *args: Any, **kw: Any) -> None:
        """Raise TypeError or ValueError, with the full message, for invalid arguments."""
        memory = self.check_arguments(self.name, *args, **kw)
        check_overlap(self.name, memory, self.written_names)

    def fake(self, *args: Any, **kw: Any) -> Any:
        """The op on tensors without data: checks the arguments and allocates the result."""
        self.check(*args, **kw)
        return self.result(*args) if self.result is not None else None

    def __call__(self, args: tuple[Any, ...], output: Any = None) -> Any:
        """Run the op on the backend selected for the device of its first argument.

        `args` are the positional arguments, `output` is the optional tensor that the op also
        writes. This code takes as long as the kernel of a small tensor, hence the shortcuts.
        """
        lead = args[0]
        plain = type(lead) in PLAIN
        if not plain and self.lists is not None and type(lead) in (list, tuple):
            return self.lists(args, output)
        kw: dict[str, Any] = {} if output is None else {self.output: output}
        for place, kind in self.numbers:
            if type(args[place]) is not kind:
                if self.channels is not None and isinstance(args[place], Tensor):
                    return self.channels(args, output)
                args = self.plain_numbers(args, kw)
                break
        if not plain or is_compiling():
            if not isinstance(lead, Tensor):
                self.check(*args, **kw)
            return self.overload(backends.select(lead.device.type))(*args, **kw)
        if is_grad_enabled():
            for value in args if output is None else (*args, output):
                if getattr(value, "requires_grad", False):
                    self.refuse_grad()
        if self.cpu is not None and lead.is_cpu and backends.chosen is None:
            try:  # ``run_compiled``, two calls less
                with _below_guard():
                    try:
                        result = self.cpu(*args, **kw)
                    except Exception as error:
                        _forget_frames(error)
                        raise
            except RuntimeError as error:
                self.explain(error, args, kw)
        else:
            result = self.run_chosen(lead, args, kw)
        pick = self.written
        increment_version(pick(args) if output is None else (*pick(args), output))
        return result

    def plain_numbers(self, args: tuple[Any, ...], kw: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments with every number converted to a Python number, for all backends alike.

        torch would accept a tensor as a number and drop its gradient; NumPy scalars compute in
        their own precision.
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
        """Run on the backend selected for the device of `lead`."""
        if lead.is_cpu and backends.chosen is None and self.cpu is not None:
            return self.run_compiled(self.cpu, args, kw)
        backend = backends.select(lead.device.type)
        first_use.require(backend, self, lead.device, args, kw)
        return self.run(backend, *args, **kw)

    def run(self, backend: str, *args: Any, **kw: Any) -> Any:
        """Check the arguments and run, without the checks for autograd."""
        if backend in backends.COMPILED:
            return self.run_compiled(self.overload(backend)._op, args, kw)
        self.check(*args, **kw)
        with torch.no_grad():
            return self.run_python(backend, args, kw)

    def run_python(self, backend: str, args: tuple[Any, ...], kw: dict[str, Any]) -> Any:
        """Run a Python backend on arguments that are already checked."""
        if backend == "reference":
            return self.define(*args, **kw)
        return self.written_in(backend)(*args, **kw)

    def written_in(self, backend: str) -> Callable[..., Any]:
        """The op in a Python backend; NotImplementedError if the backend lacks it."""
        try:
            return getattr(backends.implementation(backend), self.name)
        except AttributeError as error:
            raise NotImplementedError(
                f"{self.name}: expected a backend that has this op, got {backend!r}; choose another"
            ) from error

    def run_compiled(self, call: Any, args: tuple[Any, ...], kw: dict[str, Any]) -> Any:
        """Run a compiled kernel, which checks its arguments itself."""
        try:
            with _below_guard():
                try:
                    return call(*args, **kw)
                except Exception as error:
                    _forget_frames(error)
                    raise
        except RuntimeError as error:
            self.explain(error, args, kw)

    def explain(self, error: RuntimeError, args: tuple[Any, ...], kw: dict[str, Any]) -> NoReturn:
        """Replace a kernel's terse error by the ValueError or TypeError of the Python checks."""
        self.check(*args, **kw)
        if "aten::empty_like" in str(error):  # the stable ABI hides torch's own message
            raise torch.OutOfMemoryError(
                f"{self.name}: out of memory: torch could not allocate the result, or a copy of f "
                "in the state's memory order"
            ) from error
        raise error

    def overload(self, backend: str) -> Any:
        """The torch op of a backend; RuntimeError if the compiled extension is missing."""
        if backend in self.overloads:
            return self.overloads[backend]
        if backend not in self.namespaces:
            reason = backends.why_not("cpu") or "it is newer than the compiled extension"
            raise RuntimeError(f"torch.ops.{NAMESPACE}.{self.name} is not registered: {reason}")
        packet = getattr(getattr(torch.ops, self.namespaces[backend]), self.name)
        found = getattr(packet, self.overload_name or "default")
        if not is_compiling():  # a compiler would have to replay this
            self.overloads[backend] = found
        return found

    def refuse_grad(self) -> NoReturn:
        """Raise RuntimeError: autograd would have to differentiate this op."""
        raise RuntimeError(
            f"{self.name}: an argument requires grad, and the op has no derivative; call it under "
            f"torch.no_grad(), or use the differentiable equivalent: {self.instead}"
        )


def _forget_frames(error: BaseException | None) -> None:
    """Release the frames that an error keeps alive, while the guard around the call is active.

    torch prints an argument that it cannot convert. If that fails, the frames hold one of torch's
    own guards. Freed later, it would restore the dispatch keys of this moment, and autograd would
    then record nothing on this thread.
    """
    while error is not None:
        # Python 3.10 keeps the traceback while an error is handled, so clear its frames as well.
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


class ListOp(Op):
    """The overload of an op that takes lists of leaves instead of tensors."""

    def __init__(
        self,
        op: Op,
        arguments: Arguments | None = None,
        define: Callable[..., Any] | None = None,
        dtypes: Sequence[Dtypes] | None = None,
        join: Callable[[list[Tensor]], Any] = list,
    ) -> None:
        """Derive the overload from the op on one leaf, except for what is given.

        `define` is the op on one leaf; `join` combines the results of all leaves. If `arguments`
        are given, they include the tensors to which the results are written, and nothing is
        returned.
        """
        self.join, self.define_leaf = join, define or op.define
        super().__init__(
            f"{op.name}.list",
            arguments or op.arguments,
            self.define_leaves,
            op.check_arguments,
            instead=op.instead,
            dtypes=dtypes or op.dtypes,
            result=op.result if arguments is None else None,
        )
        op.lists = self

    def define_leaves(self, *args: Any, **kw: Any) -> Any:
        """The definition: one leaf after another."""
        return self._of_leaves(self.define_leaf, args, kw)

    def check(self, *args: Any, **kw: Any) -> None:
        """Like ``Op.check``, for each leaf and across leaves."""
        check_leaves(self.check_arguments, self.name, self.arguments, args, kw)

    def fake(self, *args: Any, **kw: Any) -> Any:
        """Like ``Op.fake``."""
        self.check(*args, **kw)
        return None if self.result is None else self._of_leaves(self.result, args, {})

    def _of_leaves(
        self, function: Callable[..., Any], args: tuple[Any, ...], kw: dict[str, Any]
    ) -> Any:
        leaves = range(len(args[0]))
        results = [function(*leaf_of(args, k), **leaf_of(kw, k)) for k in leaves]
        return None if results[0] is None else self.join(results)

    def __call__(self, args: tuple[Any, ...], output: Any = None) -> Any:
        """Like ``Op.__call__``; leaves may be given as a tuple as well as a list."""
        kw = {} if output is None else {self.output: output}
        args = tuple(list(a) if isinstance(a, tuple) else a for a in args)
        leads = [t for t in args[0] if isinstance(t, Tensor)]
        if not leads or len(leads) < len(args[0]):
            self.check(*args, **kw)
        if any(type(args[place]) is not kind for place, kind in self.numbers):
            args = self.plain_numbers(args, kw)
        if is_compiling() or any(type(lead) not in PLAIN for lead in leads):
            return self.overload(backends.select(leads[0].device.type))(*args, **kw)
        if is_grad_enabled() and any(t.requires_grad for t in leaves_of((*args, output))):
            self.refuse_grad()
        result = self.run_chosen(leads[0], args, kw)
        increment_version(list(leaves_of((*self.written(args), output))))
        return result


def leaves_of(values: Iterable[Any]) -> Iterable[Tensor]:
    """The tensors among the values and inside their lists."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from (t for t in value if isinstance(t, Tensor))
        elif isinstance(value, Tensor):
            yield value


def _picker(places: list[int]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """A fast function that returns the elements at these places of a tuple, as a tuple."""
    if places == list(range(len(places))):
        return operator.itemgetter(slice(len(places)))
    return operator.itemgetter(*places) if len(places) > 1 else lambda args: (args[places[0]],)


def _moved(arguments: Arguments) -> str:
    """The traffic per element, such as "2 state + f + cast": a state is read and written."""
    moved = [a for a in arguments if a.is_tensor and not a.shared]
    return " + ".join("2 " * (a.written and a.role == DENSE) + a.name for a in moved)
