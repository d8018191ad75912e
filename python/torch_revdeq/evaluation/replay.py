"""The conditions under which f is evaluated, so that the way back meets them again.

Autocast, random numbers, parameters, what f writes, hooks on the tensors it reads: each is noted in
the forward pass, restored around an evaluation on the way back, and put back afterwards also where
f raises.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.cuda_graphs import capturing
from ..runtime.saved import saved_apart
from ..runtime.scopes import scope
from .adjoint import Adjoint
from .effects.holdings import Holdings, search
from .effects.kept_state import Growth, KeptState
from .effects.standing import Standing, put
from .effects.written import Change, Written, version_of
from .flat_function import FlatFunction
from .rng import Rng, RngReplay

# ---- autocast --------------------------------------------------------------------------------

AutocastState = tuple[tuple[str, bool, torch.dtype], ...]


def autocast_state(device: torch.device) -> AutocastState:
    """Autocast as it stands, for the CPU and for the device."""
    # Devices that compute nothing, as "meta", have no autocast.
    types = ("cpu",) if device.type in ("cpu", "meta") else ("cpu", device.type)
    return tuple((t, torch.is_autocast_enabled(t), torch.get_autocast_dtype(t)) for t in types)


@contextmanager
def autocast(state: AutocastState) -> Iterator[None]:
    """Autocast as it stood, without its cache of weights.

    A cached cast would tie the graphs of all half steps together, and add their gradients in low
    precision.
    """
    with ExitStack() as stack:
        for device_type, enabled, dtype in state:
            stack.enter_context(
                torch.autocast(device_type, dtype=dtype, enabled=enabled, cache_enabled=False)
            )
        yield


# ---- hooks -----------------------------------------------------------------------------------


class _Masked:
    """Hooks that are out of the way while some replay runs, counted over threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.taken: dict[int, tuple[int, Any, list[Any]]] = {}

    def take(self, hooks: Any) -> None:
        with self.lock:
            count, _, items = self.taken.get(id(hooks), (0, hooks, []))
            self.taken[id(hooks)] = (count + 1, hooks, [*items, *hooks.items()])
            hooks.clear()

    def give_back(self, hooks: Any) -> None:
        with self.lock:
            count, _, items = self.taken.pop(id(hooks))
            if count > 1:
                self.taken[id(hooks)] = (count - 1, hooks, items)
                return
            late = list(hooks.items())
            hooks.clear()
            hooks.update([*items, *late])


_masked = _Masked()


@contextmanager
def hooks_masked(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Keep tensor hooks from running inside: they are for the whole gradient, not for its parts."""
    hooked = [t._backward_hooks for t in tensors if t._backward_hooks]
    for hooks in hooked:
        _masked.take(hooks)
    try:
        yield
    finally:
        for hooks in hooked:
            _masked.give_back(hooks)


# ---- all of them -----------------------------------------------------------------------------


def _half_step(evaluation: Evaluation, k: int, *rest: object, **options: object) -> str:
    return f"half step {k}: f again" if evaluation.going_back else f"half step {k}: f"


class Evaluation:
    """f as the solver evaluates it: half step k of a solve, forward or again on the way back."""

    def __init__(self, mapping: FlatFunction, device: torch.device, rng: Rng) -> None:
        """Note the conditions of the forward pass."""
        self.mapping = mapping
        self.held = search((mapping.f, *mapping.constants))
        self.modules = self.held.modules
        self.bare = self.held.is_bare()
        self.autocast = autocast_state(device)
        self.random = RngReplay(device, rng)
        self.adjoint = Adjoint()  # chosen after f's modules are known
        self.transformed = False  # whether the solve is part of a transform of torch.func
        self.given: list[tuple[Tensor, int]] = []  # arguments, and their versions before the first
        self.growth: Growth | None = None
        self.writes: Written | None = None
        self.state: KeptState | None = None
        self.standing: Standing | None = None
        self.watching = self.may_read = self.replayed = False
        self.weights = 0
        self.restored: KeptState | None = None
        self.device = device
        self.switch_autocast = False
        self.going_back = False

    @cached_property
    def computed(self) -> list[tuple[nn.Module, str, Tensor]]:
        """Where f's modules hold, as parameters, tensors that were computed and require grad.

        As it was when this was first read, which is before the forward pass or in it.
        """
        return Standing(self.modules).computed() if self.modules else []

    def with_computed(self, tensors: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Have these stand in place of the ``computed``, one for each."""
        rows = zip(self.computed, tensors, strict=True)
        return put([(module._parameters, name, tensor) for (module, name, _), tensor in rows])

    @scope(_half_step)
    def __call__(self, k: int, leaves: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
        """f in half step k, inside of ``forward`` or ``replay``."""
        alone = leaves[0] if len(leaves) == 1 else None  # the common case, without lists
        if alone is None:
            versions: Any = [*map(version_of, leaves)]
        else:
            versions = 0 if alone.is_inference() else alone._version
        if k == 0 and self.watching:
            self.given = [(t, version_of(t)) for t in tensors]
        if self.random.active:
            self.random.set(k)
        mapping = self.mapping
        try:
            if self.switch_autocast or self.weights or self.restored is not None:
                out = self._around(k, leaves, tensors)
            elif mapping.simple:
                out = [mapping.f(leaves[0], *tensors)]
                mapping.check_one(out)
            else:
                out = mapping(leaves, tensors, k >> 1)
        except RuntimeError as error:
            if "leaf Variable that requires grad" not in str(error):
                raise
            raise changed_in_place() from error
        if alone is None:
            changed = versions != [*map(version_of, leaves)]
        else:
            changed = versions != (0 if alone.is_inference() else alone._version)
        if changed:
            raise changed_in_place()
        if k < 4 and self.watching:
            self._watch(k, leaves, tensors, out)
        return out

    def _around(self, k: int, leaves: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
        """f under autocast, or with weights that are given with its arguments."""
        given = len(tensors) - self.weights
        with ExitStack() as stack:
            if self.switch_autocast:
                stack.enter_context(autocast(self.autocast))
            if self.restored is not None:
                stack.enter_context(self.restored.kept())
            if self.weights:
                stack.enter_context(self.with_computed(tensors[given:]))
            return self.mapping(leaves, tensors[:given], k >> 1)

    def take_computed(self) -> list[Tensor]:
        """The weights that were computed, which evaluations are given after the arguments now."""
        self.weights = len(self.computed)
        return [tensor for *_, tensor in self.computed]

    def settle(self) -> None:
        """Before evaluations, in the forward or the backward pass."""
        _settle_threads()
        now = autocast_state(self.device)
        self.switch_autocast = any(on for _, on, _ in (*self.autocast, *now))

    @contextmanager
    def forward(self, *, replayed: bool, may_read: bool = False) -> Iterator[None]:
        """Around the forward pass: the generators go on from where the first half step left them.

        `replayed`: f will be evaluated again. It may not read what it writes, unless `may_read`:
        the way back gives it that as the forward pass did.
        """
        _settle_threads()
        self.switch_autocast = any(on for _, on, _ in self.autocast)  # as it has just been noted
        self.watching, self.may_read = True, may_read
        if not self.adjoint.evaluates_once and not self.bare:
            self.growth = Growth(self.held)
        self.replayed = replayed
        if replayed and not self.bare:
            self.writes, self.state = Written(self.held), KeptState(self.held)
            if not (self.transformed or capturing(self.device)):
                self.writes.before_first()
        try:
            yield
            if replayed:
                self.random.check_late()
            if self.growth is not None:
                _refuse_growth(self.growth.at_the_end())
            self._note_given()
            if self.writes is not None and self.state is not None:
                if self.modules and not self.adjoint.exchanges_parameters:
                    self.standing = Standing(self.modules)
                self.writes.end()
                self.state.end()
        finally:
            self.watching, self.growth, self.held, self.given = False, None, Holdings(), []
            if self.random.active:
                self.random.restore(self.random.after)

    def _watch(
        self, k: int, leaves: Sequence[Tensor], tensors: Sequence[Tensor], out: Sequence[Tensor]
    ) -> None:
        """After each of the first evaluations of the forward pass: what else they did."""
        if k == 0:
            self.random.observe_first()
            self._note_given()
            if self.writes is not None and self.writes.copies:
                self.writes.after_first()
            if self.growth is not None and not self.growth.after_first():
                self.growth = None
            return
        if self.growth is not None:
            self.growth.after_another()
        if k == 1 and self.writes is not None and not self.may_read:
            self._note_given()
            pure = self.transformed
            changed = self.writes.changed(statistics=pure)
            if changed:
                self._check_changed(changed, leaves, tensors, out)

    def _note_given(self) -> None:
        """Have the arguments that f wrote put back, too."""
        written = [(tensor, then) for tensor, then in self.given if version_of(tensor) != then]
        if not written or not self.replayed:
            return
        if self.adjoint.fills_saved:
            raise changed_in_place("an argument")
        if self.writes is None:
            self.writes, self.state = Written(self.held), KeptState(self.held)
        self.writes.add(written)
        self.given = [row for row in self.given if version_of(row[0]) == row[1]]

    def _check_changed(
        self,
        changed: Sequence[Change],
        leaves: Sequence[Tensor],
        tensors: Sequence[Tensor],
        out: Sequence[Tensor],
    ) -> None:
        """Refuse an f that reads what it wrote: the second half step is evaluated once more.

        Comparing waits for the device, for an f that writes more than statistics of torch's own.
        """
        if self.transformed:
            raise RuntimeError(
                "f: expected to leave its buffers as they are inside of torch.func, got a change "
                f"of {changed[0].name}; put the module in eval mode, or choose another adjoint"
            )
        if capturing(self.device):
            return  # nothing can be compared; the check on the way back remains
        if any(change.to_read for change in changed) or self._reads_itself(leaves, tensors, out):
            raise RuntimeError(
                "f: expected to read none of the buffers and tensors that it writes, got a change "
                f"of {changed[0].name}, after which it maps the same state to another; put the "
                "module in eval mode, or choose adjoint='backprop', which evaluates nothing again"
            )

    def _reads_itself(
        self, leaves: Sequence[Tensor], tensors: Sequence[Tensor], out: Sequence[Tensor]
    ) -> bool:
        """Whether the same state is mapped to another now, and f does not differ by itself.

        Two more evaluations, which meet what the forward pass left, tell one reason from the other:
        they differ where f draws random numbers that are its own.
        """
        again = self.again(1, leaves, tensors)
        if all(map(_is_same, again, out)):
            return False
        return all(map(_is_same, again, self.again(1, leaves, tensors)))

    def written_besides_buffers(self) -> str | None:
        """Inside of ``forward``: what f was seen to write that is no buffer, in words."""
        if self.writes is not None and self.writes.loose_changed():
            return "a tensor that it closes over"
        return None if self.state is None else self.state.first_changed()

    def again(
        self, k: int, leaves: Sequence[Tensor], tensors: Sequence[Tensor], *, drawn: bool = False
    ) -> list[Tensor]:
        """Half step k once more, inside of ``forward``: nothing is written, and nothing drawn.

        `drawn`: random numbers are, and the solve begins after them.
        """
        states = self.random.states()
        if self.random.active:
            self.random.set(k)
        try:
            with self.repeated(), saved_apart():
                return self._around(k, leaves, tensors)
        finally:
            if drawn:
                self.random.begin_here()
            else:
                self.random.restore(states)

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Inside of ``forward``, around evaluations that come a second time: nothing is written."""
        writes, state = Written(self.held, self.writes), KeptState(self.held)
        writes.end()
        with writes.kept(), state.kept(every=True):
            yield

    @contextmanager
    def replay(self, leaves: Sequence[Tensor]) -> Iterator[None]:
        """Around the way back, which leaves nothing of itself behind; `leaves` lose their hooks."""
        self.settle()
        with ExitStack() as stack:
            stack.callback(setattr, self, "going_back", self.going_back)
            self.going_back = True
            if self.standing is not None and not self.standing.in_place():
                stack.enter_context(self.standing.again())
            if any(leaf._backward_hooks for leaf in leaves):
                stack.enter_context(hooks_masked(leaves))
            if self.writes:
                stack.enter_context(self.writes.kept())
            if self.state:
                # Around each evaluation: what hooks write in between, of gradients, stays.
                self.restored = self.state
                stack.callback(setattr, self, "restored", None)
            if self.random.active:
                stack.callback(self.random.restore, self.random.states())
            yield


def changed_in_place(what: str = "one") -> RuntimeError:
    """f wrote into what it was given."""
    return RuntimeError(
        "f: expected to leave its state as it is, and its arguments and parameters, got "
        f"{what} changed in place; begin f with an operation that makes a new tensor, and keep "
        "what it counts in a buffer"
    )


def _refuse_growth(grown: str | None) -> None:
    if grown is not None:
        raise RuntimeError(
            f"f: expected to keep no tensor that each evaluation makes larger, got {grown}; have f "
            "read such a cache without writing it, and write it once after the solve; of a log, "
            "keep a list of floats"
        )


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Whether all numbers are equal, NaN among them."""
    if torch.equal(a, b):
        return True
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _settle_threads() -> None:
    """Let this thread take on torch's number of threads now.

    A new thread does so only in the middle of its first operations. Matrix products before and
    after would have other bits.
    """
    torch.get_num_threads()


Evaluate = Callable[[int, Sequence[Tensor]], list[Tensor]]
"""f in half step k of the given leaves, as one way of differentiating wants it evaluated."""
