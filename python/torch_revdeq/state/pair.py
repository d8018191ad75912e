"""The pair y, z in its number format, and the ops on it: forward, inverse, and adjoint.

A pair holds its leaves and what f reads of them: the leaf itself if the dtypes agree, otherwise a
copy in the dtype of z0 that the op writes in the same pass. Autograd is not involved here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..iteration.beta import BetaSchedule
from ..iteration.halting import by_sample, where_moving
from ..runtime.scopes import half_step, scope

Leaves = list[Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Group:
    """Leaves for one call of an op: either those whose copies the op writes, or the others."""

    places: tuple[int, ...]
    cast: bool

    @cached_property
    def place(self) -> int:
        """The index of the only leaf; -1 if there are several."""
        return self.places[0] if len(self.places) == 1 else -1

    def of(self, leaves: Sequence[Tensor]) -> Any:
        """These leaves as the ops expect them: one tensor, or a list."""
        if self.place >= 0:
            return leaves[self.place]
        return [leaves[i] for i in self.places]


@dataclass(frozen=True, eq=False, repr=False)
class Layout:
    """The dtypes of a pair, leaf by leaf, and how f's copies are made."""

    state: list[torch.dtype]  # float, or int32 for an exact state
    input: list[torch.dtype]  # what f reads: z0's dtypes
    output: list[torch.dtype]  # what f returns
    private: bool = False  # f's copies must outlive the step, so leaves are never passed directly

    @cached_property
    def itself(self) -> list[bool]:
        """Whether f reads the leaf itself."""
        pairs = zip(self.state, self.input, strict=True)
        return [state == read and not self.private for state, read in pairs]

    @cached_property
    def cast(self) -> list[bool]:
        """Whether the op writes f's copy, which it can in f's dtype and in float32."""
        rows = zip(self.itself, self.input, self.output, strict=True)
        return [not itself and read in (f, torch.float32) for itself, read, f in rows]

    @cached_property
    def adjoint(self) -> list[torch.dtype]:
        """The dtypes of the gradients that are carried from step to step."""
        return [torch.float64 if f == torch.float64 else torch.float32 for f in self.output]

    @cached_property
    def uncast(self) -> list[int]:
        """The leaves whose copies are made after the op, which cannot write them."""
        rows = enumerate(zip(self.itself, self.cast, strict=True))
        return [i for i, (itself, cast) in rows if not itself and not cast]

    @cached_property
    def copied(self) -> list[int]:
        """The leaves that f reads as a copy."""
        return [i for i, itself in enumerate(self.itself) if not itself]

    @cached_property
    def groups(self) -> list[Group]:
        """The fewest op calls that cover all leaves."""
        cast = self.cast
        by_cast = {c: tuple(i for i, other in enumerate(cast) if other == c) for c in (True, False)}
        return [Group(places, c) for c, places in by_cast.items() if places]


class Pair:
    """y and z, what f reads of them, and the ops of one solve. Subclasses define the ops."""

    def __init__(
        self,
        y: Leaves,
        z: Leaves,
        layout: Layout,
        schedule: BetaSchedule,
        *,
        read_y: Leaves | None = None,
    ) -> None:
        """Take ownership of the leaves; f's copies are allocated where a step writes them."""
        self.y, self.z = y, z
        self.layout, self.schedule = layout, schedule
        self.groups, self.uncast = layout.groups, layout.uncast
        # For a state of one leaf: its group, so that a half step need not look it up.
        self.only = self.groups[0] if len(layout.state) == 1 else None
        self.read_y = self._room(y) if read_y is None else read_y
        self.read_z = self._room(z)

    def _room(self, state: Leaves) -> Leaves:
        rows = zip(state, self.layout.input, self.layout.itself, strict=True)
        return [s if itself else torch.empty_like(s, dtype=read) for s, read, itself in rows]

    def from_saved(self, tensors: Sequence[Tensor]) -> Pair:
        """The final pair, for the backward pass, in the memory of ``tensors``."""
        raise NotImplementedError

    def decode(self, leaf: Tensor, dtype: torch.dtype) -> Tensor:
        """The numbers that a leaf represents, in new memory."""
        raise NotImplementedError

    def encode(self, leaves: Sequence[Tensor]) -> Leaves:
        """Leaves of an initial state in the format of the pair."""
        raise NotImplementedError

    def read(self, state: Leaves) -> Leaves:
        """What f reads of these leaves, recomputed."""
        rows = zip(state, self.layout.input, self.layout.itself, strict=True)
        return [s if itself else self.decode(s, read) for s, read, itself in rows]

    def outputs(self) -> tuple[Leaves, Leaves]:
        """z and y in z0's dtypes, in new memory."""
        return self._own(self.read_z), self._own(self.read_y)

    def _own(self, read: Leaves) -> Leaves:
        rows = zip(read, self.layout.itself, strict=True)
        return [leaf.clone() if itself else leaf for leaf, itself in rows]

    def saved_tensors(self) -> Leaves:
        """Everything that the backward pass needs."""
        return [*self.y, *self.z]

    def release(self) -> None:
        """Release all memory. ``from_saved`` can resume in other memory."""
        self.y, self.z, self.read_y, self.read_z = [], [], [], []

    def _fill(self, state: Leaves, read: Leaves, places: Sequence[int]) -> None:
        """Write f's copies that no op writes."""
        for i in places:
            read[i].copy_(self.decode(state[i], self.layout.input[i]))

    # ---- forward ----

    @scope(half_step(0, "update"))
    def update_y(self, n: int, f: Leaves) -> None:
        """y <- (1 - beta) y + beta f(z)."""
        if self.layout.private:
            self.read_y = self._room(self.y)
        self._half_step("update", self.y, self.read_y, n, 0, f)

    @scope(half_step(1, "update"))
    def update_z(self, n: int, f: Leaves) -> None:
        """z <- (1 - beta) z + beta f(y)."""
        if self.layout.private:
            self.read_z = self._room(self.z)
        self._half_step("update", self.z, self.read_z, n, 1, f)

    # ---- inverse ----

    @scope(half_step(1, "invert"))
    def invert_z(self, n: int, f: Leaves) -> None:
        """Reconstruct z before ``update_z``."""
        if self.layout.private:
            self.read_z = self._room(self.z)
        self._half_step("invert", self.z, self.read_z, n, 1, f)

    @scope(half_step(0, "invert"))
    def invert_y(self, n: int, f: Leaves) -> None:
        """Reconstruct y before ``update_y``."""
        if self.layout.private:
            self.read_y = self._room(self.y)
        self._half_step("invert", self.y, self.read_y, n, 0, f)

    def _half_step(
        self, op: str, state: Leaves, read: Leaves, n: int, second: int, f: Leaves
    ) -> None:
        if self.schedule.halting is not None:
            moving = self.schedule.moving(n)
            if moving is not None:
                self._half_step_of(moving, op, state, read, n, second, f)
                return
        only = self.only
        if only is not None:
            cast = read[0] if only.cast else None
            self._call(op, only, state[0], n, second, f[0], cast)
        else:
            for group in self.groups:
                cast = group.of(read) if group.cast else None
                self._call(op, group, group.of(state), n, second, group.of(f), cast)
        if self.uncast:
            self._fill(state, read, self.uncast)

    def _half_step_of(
        self, moving: Tensor, op: str, state: Leaves, read: Leaves, n: int, second: int, f: Leaves
    ) -> None:
        """The same for some samples. The ops update all, so the others are restored afterwards."""
        before = [leaf.clone() for leaf in state]
        # f of a halted sample is not used, so that it cannot leave the range of the state.
        used = [where_moving(moving, value, 0.0) for value in f]
        for group in self.groups:
            self._call(op, group, group.of(state), n, second, group.of(used), None)
        for leaf, old in zip(state, before, strict=True):
            torch.where(by_sample(moving, leaf), leaf, old, out=leaf)
        self._fill(state, read, self.layout.copied)

    def _call(
        self, op: str, group: Group, state: Any, n: int, second: int, f: Any, cast: Any
    ) -> None:
        raise NotImplementedError

    # ---- inverse, merged with the adjoint ----

    @scope(half_step(1, "invert + adjoint"))
    def invert_z_adjoint_y(
        self, n: int, f: Leaves, grad_y: Leaves, vjp: Leaves, seed: Leaves
    ) -> None:
        """Reconstruct z; vjp is added to grad_y, which becomes the seed."""
        only = self.only
        if only is not None:
            cast = self.read_z[0] if only.cast else None
            self._first_pass(only, n, f[0], (grad_y[0], vjp[0], seed[0]), cast)
        else:
            for group in self.groups:
                adjoint = (group.of(grad_y), group.of(vjp), group.of(seed))
                cast = group.of(self.read_z) if group.cast else None
                self._first_pass(group, n, group.of(f), adjoint, cast)
        if self.uncast:
            self._fill(self.z, self.read_z, self.uncast)

    @scope(half_step(0, "invert + adjoint"))
    def invert_y_adjoint_z(
        self, n: int, f: Leaves, grad_z: Leaves, vjp: Leaves, seed: Leaves
    ) -> None:
        """Reconstruct y; vjp is added to grad_z, which becomes the seed of the step before."""
        only = self.only
        if only is not None:
            cast = self.read_y[0] if only.cast else None
            self._second_pass(only, n, f[0], (grad_z[0], vjp[0], seed[0]), cast)
        else:
            for group in self.groups:
                adjoint = (group.of(grad_z), group.of(vjp), group.of(seed))
                cast = group.of(self.read_y) if group.cast else None
                self._second_pass(group, n, group.of(f), adjoint, cast)
        if self.uncast:
            self._fill(self.y, self.read_y, self.uncast)

    @scope(half_step(0, "invert + adjoint"))
    def invert_y_adjoint_z0(self, f: Leaves, grad_z: Leaves, grad_y: Leaves, vjp: Leaves) -> None:
        """Reconstruct y where y0 is z0; grad_z becomes the gradient of that initial state."""
        for group in self.groups:
            adjoint = (group.of(grad_z), group.of(grad_y), group.of(vjp))
            self._last_pass(group, group.of(f), adjoint)

    def _first_pass(self, group: Group, n: int, f: Any, adjoint: Any, cast: Any) -> None:
        raise NotImplementedError

    def _second_pass(self, group: Group, n: int, f: Any, adjoint: Any, cast: Any) -> None:
        raise NotImplementedError

    def _last_pass(self, group: Group, f: Any, adjoint: Any) -> None:
        raise NotImplementedError
