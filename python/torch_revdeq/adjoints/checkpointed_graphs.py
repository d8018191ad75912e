"""Half steps of ``adjoint="checkpoint"``, whose activations are recomputed when needed.

Each saves the input of f. Tensors that autograd saves in f are dropped and recomputed by a second
evaluation, as in ``torch.utils.checkpoint``. The recomputation restores f's random numbers and
buffers, runs f to its end (an operation may still fill what it saved), and names what it cannot do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _NormBase

from ..evaluation.closure import now
from ..evaluation.effects.naming import name_of
from ..evaluation.effects.standing import is_computed, leaf_again
from ..evaluation.marks import NOISE, differs, mark_of
from ..evaluation.replay import Evaluation
from ..runtime.cuda_graphs import capturing
from ..runtime.deferred import report_check
from ..runtime.transforms import outside_batches
from .frozen import Frozen
from .same_operations import Operations


class CheckpointedGraphs:
    """f in the half steps of one solve, evaluated and recomputed."""

    def __init__(
        self, evaluation: Evaluation, tensors: Sequence[Tensor], check: bool | float = True
    ) -> None:
        """Note the versions of f's parameters, which of them are frozen, and its buffers.

        `check` as in ``solve``: whether f must return the same values again, up to noise.
        """
        self.evaluation, self.tensors = evaluation, tensors
        self.compared = check is not False
        modules = evaluation.modules
        parameters = {id(p): p for m in modules for p in m._parameters.values() if p is not None}
        self.parameters = [(p, p._version) for p in parameters.values()]
        self.frozen = Frozen(evaluation, [*parameters.values()])
        self.buffers = BufferTrail(modules)
        self.operations = Operations(evaluation)
        self.task: int | None = None

    def evaluate(self, k: int, leaves: Sequence[Tensor]) -> list[Tensor]:
        """f in half step k, in autograd's graph, without the tensors that it saves."""
        half = _HalfStep(self, k, leaves, self.buffers.note())
        since = now()
        try:
            with saved_tensors_hooks(half.pack, half.unpack):
                out = self.evaluation(k, leaves, self.tensors)
        finally:
            half.running = None
        self.operations.note(k, out, since, [*leaves, *self.tensors])
        if k == 1:
            self._check_reads(half.buffers, leaves, out)
        if self.compared:
            half.mark = mark_of(out)
        return out

    def _check_reads(
        self, buffers: list[_Held], leaves: Sequence[Tensor], out: Sequence[Tensor]
    ) -> None:
        """RuntimeError for an f that reads what it writes, except buffers, which are restored.

        The half step is evaluated once more, with the buffers that it had.
        """
        evaluation = self.evaluation
        written = evaluation.written_besides_buffers()
        if written is None or capturing(evaluation.device):
            return
        with self.buffers.put_back(buffers):
            again = evaluation.again(1, leaves, self.tensors)
        if not all(map(_same, again, out)):
            raise RuntimeError(
                "f: expected not to read the attributes, containers and tensors that it writes "
                f"with adjoint='checkpoint', got a change of {written}, after which it maps the "
                "same state to another; keep it in a buffer (register_buffer), or choose "
                "adjoint='backprop'"
            )

    def check(self, task: int) -> None:
        """RuntimeError if a parameter was changed since the forward pass; once a backward pass."""
        if task == self.task:
            return
        for parameter, version in self.parameters:
            if parameter._version != version:
                name = name_of(parameter, self.evaluation.modules)
                raise RuntimeError(
                    "solve: one of the variables needed for gradient computation has been modified "
                    f"by an inplace operation: {name}; change it (as optimizer.step() does) after "
                    "backward()"
                )
        self.task = task


Form = tuple[torch.Size, torch.dtype]
"""What is known of a saved tensor while it is dropped."""


class Saves(saved_tensors_hooks):
    """Collects what autograd saves in a recomputation, whose own graph is never differentiated."""

    def __init__(self) -> None:
        """Nothing yet."""
        super().__init__(self._pack, self._unpack)
        self.forms: list[Form] = []
        self._tensors: list[Tensor | None] = []
        self._versions: list[int] = []
        self._running = True

    def _pack(self, tensor: Tensor) -> int:
        self.forms.append((tensor.shape, tensor.dtype))
        self._tensors.append(tensor.detach())
        self._versions.append(tensor._version)
        return len(self.forms) - 1

    def _unpack(self, number: int) -> Tensor:
        tensor = self._tensors[number] if self._running else None  # f may differentiate inside
        if tensor is None:
            raise RuntimeError("solve: a recomputed graph was differentiated; please report this")
        return tensor

    def __exit__(self, *error: object) -> None:
        """Done."""
        super().__exit__(*error)
        self._running = False
        del self.pack_hook, self.unpack_hook  # bound methods, which would keep this object alive

    def take(self) -> list[Tensor | None]:
        """The tensors; None where f changed one in place after it was saved."""
        rows = zip(self._tensors, self._versions, strict=True)
        self._tensors = []  # a graph that f keeps would hold this object
        return [t if t is not None and t._version == v else None for t, v in rows]


def saved_others() -> RuntimeError:
    """The error if a recomputation saves other tensors."""
    return RuntimeError(
        "f: expected to save the same tensors for its gradient in both passes, got others in the "
        "backward pass, probably because f keeps something from one evaluation to the next (a "
        "tensor computed once, a cache, a counter); compute it in every call, or before the solve "
        "and pass it as an argument"
    )


def returned_other() -> RuntimeError:
    """The error if a recomputation returns something else."""
    return RuntimeError(
        "f: expected to return the same values in both passes, got others in the backward pass, "
        "so the gradient would be wrong. Probable causes: random numbers from a source other than "
        "torch's default generators (its own Generator, numpy, random), a counter, a hook or "
        "module mode that changed in between; pass what changes as an argument, or choose "
        "adjoint='backprop'"
    )


def changed_in_place() -> RuntimeError:
    """The error for a saved tensor that was modified in place, which autograd words otherwise."""
    return RuntimeError(
        "f: expected not to modify what autograd saved, got an in-place change of a tensor that "
        "its gradient needs; use an out-of-place operation there"
    )


class _HalfStep:
    """The saved tensors of one evaluation."""

    def __init__(
        self, solve: CheckpointedGraphs, k: int, leaves: Sequence[Tensor], buffers: list[_Held]
    ) -> None:
        self.solve, self.k, self.buffers = solve, k, buffers
        self.leaves = len(leaves)
        inputs = [*leaves, *solve.tensors]
        self.kinds = [(t.requires_grad, is_computed(t)) for t in inputs]
        self.inputs = _save(inputs)
        self.forms: list[Form] = []
        # While f runs: it may differentiate inside itself.
        self.running: list[Tensor] | None = []
        self.task: int | None = None
        self.cache: dict[int, Tensor | None] = {}
        self.mark: Tensor | None = None  # of what f returned

    def pack(self, tensor: Tensor) -> int:
        """A number for the tensor, which is dropped after f has been evaluated."""
        assert self.running is not None
        self.running.append(tensor)
        self.forms.append((tensor.shape, tensor.dtype))
        return len(self.forms) - 1

    def unpack(self, number: int) -> Tensor:
        """The tensor of a number."""
        if self.running is not None:
            return self.running[number].detach()
        task = torch._C._current_graph_task_id()
        if task != self.task or number not in self.cache:
            self.solve.check(task)
            with outside_batches():
                self._recompute()
            self.task = task
        tensor = self.cache.pop(number)
        if tensor is None:
            raise changed_in_place()
        return tensor

    def _recompute(self) -> None:
        found = Saves()
        solve = self.solve
        frozen = solve.frozen.changed()
        rows = zip(self.inputs.saved_tensors, self.kinds, strict=True)  # raises if one was changed
        with (
            solve.evaluation.replay(()),
            solve.buffers.put_back(self.buffers),
            torch.enable_grad(),
        ):
            inputs = [leaf_again(t, needs=needs, computed=made) for t, (needs, made) in rows]
            since = now()
            with found:
                out = solve.evaluation(self.k, inputs[: self.leaves], inputs[self.leaves :])
            tensors = found.take()
        if found.forms != self.forms:
            raise frozen or saved_others()
        solve.operations.check(self.k, out, since, frozen)
        self.cache = dict(enumerate(tensors))
        if self.mark is not None:
            self._compare(differs(self.mark, mark_of(out), NOISE))

    def _compare(self, failed: Tensor) -> None:
        """Raise if f returned something else; if the error is deferred, make its saves NaN."""
        if report_check(failed, returned_other, ()) is None:
            return
        for number, tensor in self.cache.items():
            if tensor is not None and (tensor.is_floating_point() or tensor.is_complex()):
                self.cache[number] = torch.where(failed, float("nan"), tensor)


class _Inputs(torch.autograd.Function):
    """A node that autograd never runs: it saves tensors as autograd's own nodes do.

    So they are freed with the graph, checked for in-place changes, and seen by saved-tensor hooks
    around the solve.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return anchor.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise RuntimeError("solve: a recomputed graph was differentiated; please report this")


def _save(inputs: Sequence[Tensor]) -> Any:
    anchor = torch.empty(0, requires_grad=True)
    return _Inputs.apply(anchor, *inputs).grad_fn


# ---- buffers ---------------------------------------------------------------------------------

_Held = tuple[Tensor | None, int, Tensor | None]
"""A buffer, its version, and a copy of it."""


class BufferTrail:
    """The contents of f's buffers before each evaluation; copies of those that change."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        """Note where the buffers are."""
        # batch_norm writes its statistics without incrementing their versions.
        self.places = [
            (module._buffers, name, isinstance(module, _NormBase))
            for module in modules
            for name in module._buffers.keys()  # noqa: SIM118 - scripted modules only have keys()
        ]
        self.last: list[_Held] = []

    def note(self) -> list[_Held]:
        """The current contents of the buffers."""
        if not self.places:
            return []
        before = self.last or [None] * len(self.places)
        rows = zip(self.places, before, strict=True)
        self.last = [
            held if held is not None and self._unchanged(place, held) else _copy(_get(*place[:2]))
            for place, held in rows
        ]
        return self.last

    @staticmethod
    def _unchanged(place: tuple[dict[str, Tensor | None], str, bool], held: _Held) -> bool:
        buffers, name, silent = place
        now = _get(buffers, name)
        if now is None or held[0] is None:
            return now is held[0]
        return now is held[0] and not silent and _version(now) == held[1]

    @contextmanager
    def put_back(self, noted: list[_Held]) -> Iterator[None]:
        """Restore the buffers for a recomputation, and put the current ones back afterwards.

        Separate tensors take their places, because what f saves must not change afterwards.
        """
        if not noted:
            yield
            return
        rows = zip(self.places, noted, strict=True)
        changed = [(place, held) for place, held in rows if not self._unchanged(place, held)]
        saved = [(buffers, name, _get(buffers, name)) for (buffers, name, _), _ in changed]
        try:
            for (buffers, name, _), (_, _, copy) in changed:
                buffers[name] = None if copy is None else copy.clone()
            yield
        finally:
            for buffers, name, buffer in saved:
                buffers[name] = buffer


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, counting NaN as equal to NaN."""
    if torch.equal(a, b):
        return True
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _get(buffers: dict[str, Tensor | None], name: str) -> Tensor | None:
    return buffers[name] if name in buffers else None  # noqa: SIM401 - scripted modules have no get()


def _copy(buffer: Tensor | None) -> _Held:
    if buffer is None:
        return None, 0, None
    return buffer, _version(buffer), buffer.detach().clone()


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
