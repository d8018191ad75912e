"""The conditions under which f is evaluated, restored in the backward pass.

Autocast, random numbers, parameters, what f writes, hooks on the tensors it reads: each is noted in
the forward pass, restored around an evaluation in the backward pass, and reset afterwards, also if
f raises.
"""

from __future__ import annotations

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
from .called import unfit
from .effects.holdings import Holdings, search
from .effects.kept_state import Growth, KeptState
from .effects.standing import Standing, put
from .effects.written import Change, Written, version_of
from .flat_function import FlatFunction
from .masked_hooks import hooks_masked
from .rng import Rng, RngReplay

# ---- autocast --------------------------------------------------------------------------------

AutocastState = tuple[tuple[str, bool, torch.dtype], ...]


def autocast_state(device: torch.device) -> AutocastState:
    """The current autocast state, for the CPU and for the device."""
    # Devices that compute nothing, such as "meta", have no autocast.
    types = ("cpu",) if device.type in ("cpu", "meta") else ("cpu", device.type)
    return tuple((t, torch.is_autocast_enabled(t), torch.get_autocast_dtype(t)) for t in types)


@contextmanager
def autocast(state: AutocastState) -> Iterator[None]:
    """Autocast in this state, without its cache of weights.

    A cached cast would connect the graphs of all half steps, and sum their gradients in low
    precision.
    """
    with ExitStack() as stack:
        for device_type, enabled, dtype in state:
            stack.enter_context(
                torch.autocast(device_type, dtype=dtype, enabled=enabled, cache_enabled=False)
            )
        yield


# ---- all of them -----------------------------------------------------------------------------


def _half_step(evaluation: Evaluation, k: int, *rest: object, **options: object) -> str:
    return f"half step {k}: f again" if evaluation.going_back else f"half step {k}: f"


class Evaluation:
    """f as the solver evaluates it: in half step k, in the forward or backward pass."""

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
        self.given: list[tuple[Tensor, int]] = []  # arguments, and their versions at the start
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
        """Where f's modules hold computed tensors that require grad as their parameters.

        As of the first access, which is before or in the forward pass.
        """
        return Standing(self.modules).computed() if self.modules else []

    def with_computed(self, tensors: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Put these in place of the ``computed`` tensors, one for each."""
        rows = zip(self.computed, tensors, strict=True)
        return put([(module._parameters, name, tensor) for (module, name, _), tensor in rows])

    @scope(_half_step)
    def __call__(self, k: int, leaves: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
        """f in half step k, inside ``forward`` or ``replay``."""
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
        except TypeError as error:
            args, kwargs = mapping.arguments(tensors[: len(tensors) - self.weights])
            if mapping.pass_step:
                kwargs = {**kwargs, "step": k}
            said = unfit(error, mapping.f, args, kwargs)
            if said is None:
                raise
            raise said from error
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
        """f under autocast, or with weights that are passed with its arguments."""
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
        """The computed weights, which evaluations now get after the arguments."""
        self.weights = len(self.computed)
        return [tensor for *_, tensor in self.computed]

    def settle(self) -> None:
        """Call before evaluations, in the forward or the backward pass."""
        _settle_threads()
        now = autocast_state(self.device)
        self.switch_autocast = any(on for _, on, _ in (*self.autocast, *now))

    @contextmanager
    def forward(self, *, replayed: bool, may_read: bool = False) -> Iterator[None]:
        """Around the forward pass; afterwards the generators continue after the first half step.

        `replayed`: f will be evaluated again. Then it must not read what it writes, unless
        `may_read`: the backward pass restores what it reads.
        """
        _settle_threads()
        self.switch_autocast = any(on for _, on, _ in self.autocast)  # as just noted
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
        """After each of the first evaluations of the forward pass: look for side effects."""
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
        """Restore the arguments that f wrote, too."""
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
        """RuntimeError if f reads what it wrote: evaluates the second half step once more.

        If f writes more than torch's own running statistics, the comparison waits for the device.
        """
        if self.transformed:
            raise RuntimeError(
                "f: expected not to write its buffers inside torch.func, got a change of "
                f"{changed[0].name}; put the module in eval mode, or choose another adjoint"
            )
        if capturing(self.device):
            return  # nothing can be compared; the check in the backward pass remains
        if any(change.to_read for change in changed) or self._reads_itself(leaves, tensors, out):
            raise RuntimeError(
                "f: expected not to read the buffers and tensors that it writes, got a change "
                f"of {changed[0].name}, after which it maps the same state to another; put the "
                "module in eval mode, or choose adjoint='backprop', which never re-evaluates f"
            )

    def _reads_itself(
        self, leaves: Sequence[Tensor], tensors: Sequence[Tensor], out: Sequence[Tensor]
    ) -> bool:
        """Whether f maps the same state to another now, and not because it is random.

        Two more evaluations, from what the forward pass left, tell the two apart: they differ if f
        draws random numbers from its own source.
        """
        again = self.again(1, leaves, tensors)
        if all(map(_is_same, again, out)):
            return False
        return all(map(_is_same, again, self.again(1, leaves, tensors)))

    def written_besides_buffers(self) -> str | None:
        """Inside ``forward``: what f wrote that is not a buffer, in words."""
        if self.writes is not None and self.writes.loose_changed():
            return "a tensor that it closes over"
        return None if self.state is None else self.state.first_changed()

    def again(
        self, k: int, leaves: Sequence[Tensor], tensors: Sequence[Tensor], *, drawn: bool = False
    ) -> list[Tensor]:
        """Half step k once more, inside ``forward``, without writes or random draws.

        `drawn`: it does draw random numbers, and the solve begins after them.
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
        """Inside ``forward``, around repeated evaluations: undoes what they write."""
        writes, state = Written(self.held, self.writes), KeptState(self.held)
        writes.end()
        with writes.kept(), state.kept(every=True):
            yield

    @contextmanager
    def replay(self, leaves: Sequence[Tensor]) -> Iterator[None]:
        """Around the backward pass: undoes f's side effects; hooks of `leaves` are disabled."""
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
                # Around each evaluation: what gradient hooks write in between stays.
                self.restored = self.state
                stack.callback(setattr, self, "restored", None)
            if self.random.active:
                stack.callback(self.random.restore, self.random.states())
            yield


def changed_in_place(what: str = "one") -> RuntimeError:
    """The error if f modified its inputs in place."""
    return RuntimeError(
        "f: expected not to modify its state, arguments or parameters, got "
        f"{what} changed in place; write z = z + ... instead of z += ..., z.relu() instead of "
        "z.relu_(), and keep counters in a buffer"
    )


def _refuse_growth(grown: str | None) -> None:
    if grown is not None:
        raise RuntimeError(
            f"f: expected to keep no tensor that grows with each evaluation, got {grown}; have f "
            "read such a cache without writing it, and write it once after the solve; for a log, "
            "keep a list of floats"
        )


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Whether all elements are equal, counting NaN as equal to NaN."""
    if torch.equal(a, b):
        return True
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _settle_threads() -> None:
    """Make this thread adopt torch's number of threads now.

    A new thread does so only during its first operations, and matrix products before and after
    that would differ bitwise.
    """
    torch.get_num_threads()


Evaluate = Callable[[int, Sequence[Tensor]], list[Tensor]]
"""f in half step k at the given leaves, evaluated as an adjoint needs it."""
