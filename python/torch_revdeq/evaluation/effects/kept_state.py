"""Attributes and containers that f writes: restored after the backward pass, watched for growth.

f may count its calls, keep its last auxiliary output, or append to a list. An evaluation in the
backward pass does so again, which is undone afterwards, so that they hold what the forward pass
left. Only plain data is restored: numbers, strings, tensors and containers of these.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain, pairwise
from operator import is_
from typing import Any

from torch import Tensor

from .holdings import Holdings, content_of, search

_PLAIN = (int, float, complex, bool, str, bytes, type(None), list, tuple, dict, set, deque, Tensor)


_SMALL = 2**16
"""Largest NumPy array that is restored, in elements."""


class Noted:
    """The contents of attributes, containers and variables, compared by identity."""

    def __init__(self, places: list[Any]) -> None:
        """Note the contents. Dicts come first: they are the most, and are compared in C."""
        self.places = [p for p in places if type(p) is dict]
        self.dicts = len(self.places)
        self.places += [p for p in places if type(p) is not dict]
        self.sizes = [*map(len, self.places[: self.dicts])]
        self.values = self._values()
        self.others = [*map(contents_of, self.places[self.dicts :])]

    def _values(self) -> list[Any]:
        return [*chain.from_iterable(map(dict.values, self.places[: self.dicts]))]

    def changed(self) -> list[tuple[Any, list[Any]]]:
        """The places whose contents changed, with the old contents."""
        now = self._values()
        if len(now) == len(self.values) and all(map(is_, now, self.values)):
            found: list[tuple[Any, list[Any]]] = []
        else:
            ends = [*accumulate(self.sizes, initial=0)]
            parts = [self.values[a:b] for a, b in pairwise(ends)]
            found = self._compared(self.places[: self.dicts], parts)
        return found + self._compared(self.places[self.dicts :], self.others)

    @staticmethod
    def _compared(places: list[Any], contents: list[list[Any]]) -> list[tuple[Any, list[Any]]]:
        found: list[tuple[Any, list[Any]]] = []
        for place, then in zip(places, contents, strict=True):
            now = contents_of(place)
            if len(now) != len(then) or not all(map(is_, now, then)):
                found.append((place, then))
        return found


class KeptState:
    """The attributes, containers and variables that an evaluation of f could write."""

    def __init__(self, held: Holdings) -> None:
        """Note their contents."""
        self.noted = Noted(
            [*held.spaces, *held.containers, *held.cells, *held.slotted, *held.classes]
        )
        self.changed: list[Any] = []
        self.long = held.long
        self.arrays = [a for a in held.arrays if a.size <= _SMALL and a.flags.writeable]

    def __bool__(self) -> bool:
        """Whether there is anything to restore after an evaluation in the backward pass."""
        return bool(self.changed or self.long or self.arrays)

    def first_changed(self) -> str | None:
        """The first change, in words."""
        for place, then in self.noted.changed():
            if isinstance(place, type):
                return f"an attribute of the class {place.__name__}"
            if not isinstance(place, dict):
                return "an element, variable or attribute"
            now = list(place.items())
            for i, (name, value) in enumerate(now):
                if i >= len(then) or value is not then[i]:
                    return repr(name)
            return "an attribute that it deletes"
        return None

    def end(self) -> None:
        """After the forward pass: note which of them it changed."""
        self.changed = [place for place, _ in self.noted.changed()]
        self.noted = Noted([])  # release the old contents

    @contextmanager
    def kept(self, *, every: bool = False) -> Iterator[None]:
        """Restore those that the forward pass changed, or all of them."""
        places = self.noted.places if every else self.changed
        saved = [(place, _copy(place)) for place in places]
        lengths = [(place, len(place)) for place in self.long]
        values = [(array, array.copy()) for array in self.arrays]
        try:
            yield
        finally:
            for place, before in saved:
                _put_back(place, before)
            for place, length in lengths:
                _shorten(place, length)
            for array, value in values:
                array[...] = value


def contents_of(place: Any) -> list[Any]:
    """The objects in a place, in order."""
    if type(place) is dict:
        return [*place.values()]
    if isinstance(place, dict):
        return [*dict.values(place)]
    if isinstance(place, types.CellType):
        return _of_cell(place)
    if isinstance(place, type):
        return [*place.__dict__.values()]
    if isinstance(place, tuple):
        return content_of(*place)
    return [*place]


def _of_cell(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


def _copy(place: Any) -> Any:
    if isinstance(place, type):
        return dict(place.__dict__)
    return dict(place) if isinstance(place, dict) else contents_of(place)


def _put_back(place: Any, before: Any) -> None:
    """In place, so that other references to the container see the old contents."""
    if isinstance(place, dict):
        for name in [name for name in place if name not in before]:
            if _is_plain(place[name]):
                dict.__delitem__(place, name)
        for name, value in before.items():
            if place.get(name, place) is not value and _is_plain(place.get(name), value):
                dict.__setitem__(place, name, value)
    elif isinstance(place, type):
        rows = [(name, place.__dict__.get(name), value) for name, value in before.items()]
        for name, _, value in [r for r in rows if r[1] is not r[2] and _is_plain(*r[1:])]:
            setattr(place, name, value)
    elif isinstance(place, types.CellType):
        if before and _of_cell(place) != before and _is_plain(*before, *_of_cell(place)):
            place.cell_contents = before[0]
    elif isinstance(place, tuple):
        owner, slots = place
        rows = zip(slots, content_of(owner, slots), before, strict=True)
        for slot, now, then in rows:
            if now is not then and _is_plain(now, then):
                slot.__set__(owner, then)
    elif isinstance(place, list):
        list.__setitem__(place, slice(None), before)
    elif isinstance(place, set):
        set.clear(place)
        set.update(place, before)
    else:
        deque.clear(place)
        deque.extend(place, before)


def _shorten(place: Any, length: int) -> None:
    """Remove what was added at the end."""
    kind: Any = next(k for k in (dict, list, deque) if isinstance(place, k))
    take: Any = dict.popitem if kind is dict else kind.pop
    while len(place) > length:
        take(place)


def _is_plain(*values: Any) -> bool:
    """Plain data, including NumPy numbers."""
    return all(isinstance(v, _PLAIN) or type(v).__module__ == "numpy" for v in values)


# ---- what grows ------------------------------------------------------------------------------

Shapes = dict[tuple[int, Any], tuple[int, ...]]
"""The shapes of tensors, by their place and their name in it."""

Step = tuple[int, int]
"""The dimension that grew, and by how much."""


class Growth:
    """Tensors that f keeps and enlarges with each evaluation, such as a key-value cache."""

    def __init__(self, held: Holdings) -> None:
        """Note the contents of f's objects, own modules and containers."""
        self.places = [*held.own, *((f"a {type(c).__name__}", c) for c in held.containers)]
        self.places += [(_kind(owner), (owner, slots)) for owner, slots in held.slotted]
        self.noted = Noted([place for _, place in self.places])
        self.shapes: list[Shapes] = []  # before, and after each of the first evaluations

    def after_first(self) -> bool:
        """After the first evaluation: whether it changed any; those are then followed."""
        found = self.noted.changed()
        if not found:
            return False
        names = {id(place): where for where, place in self.places}
        self.places = [(names[id(place)], place) for place, _ in found]
        start: Shapes = {}
        new: list[object] = []
        for i, (place, then) in enumerate(found):
            start.update(_shapes(i, place, then))
            held = set(map(id, then))
            new += [
                v for v in contents_of(place) if id(v) not in held and not isinstance(v, Tensor)
            ]
        made = search(new)
        self.places += [*made.own, *((f"a {type(c).__name__}", c) for c in made.containers)]
        self.shapes = [start, self._now()]
        return bool(self.shapes[1])

    def after_another(self) -> None:
        """After the next evaluation."""
        self.shapes.append(self._now())

    def _now(self) -> Shapes:
        found: Shapes = {}
        for i, (_, place) in enumerate(self.places):
            found.update(_shapes(i, place, contents_of(place)))
        return found

    def at_the_end(self) -> str | None:
        """What grew by the same amount in each of the first evaluations, and later, in words."""
        if len(self.shapes) < 3:
            return None
        last = self._now()
        for key, first in self.shapes[1].items():
            sizes = [shapes.get(key) for shapes in self.shapes]
            if sizes[0] is None or len(sizes) > 3:
                del sizes[0]  # nothing, or what an earlier solve left
            steps = {_step(a, b) for a, b in pairwise(sizes)}
            step = steps.pop()
            if steps or step is None:
                continue
            dimension, more = step
            rest = _step(sizes[-1], last.get(key))
            goes_on = rest is not None and rest[0] == dimension and rest[1] % more == 0
            seen = len(sizes) > 2 or first[dimension] == more
            if seen and (goes_on or last.get(key) == sizes[-1]):
                return self._grown(key, self.shapes[0].get(key) or first, last[key])
        return None

    def _grown(self, key: tuple[int, Any], before: tuple[int, ...], after: tuple[int, ...]) -> str:
        where, name = self.places[key[0]][0], key[1]
        what = repr(name) if isinstance(name, str) else f"number {name}"
        return f"{what} in {where}, which grew from {before} to {after}"


def _kind(owner: object) -> str:
    return "the globals" if isinstance(owner, dict) else type(owner).__name__


def _shapes(index: int, place: Any, contents: list[Any]) -> Shapes:
    """The shapes of the tensors in the contents, and in tuples and lists in them."""
    names: Sequence[Any] = range(len(contents))
    if isinstance(place, dict):
        names = list(place) if len(place) == len(contents) else names
    elif isinstance(place, tuple):
        names = [slot.__name__ for slot in place[1]]
    found: Shapes = {}
    for name, value in zip(names, contents, strict=True):
        if isinstance(value, Tensor):
            found[index, name] = tuple(value.shape)
        elif type(value) in (tuple, list) and len(value) <= 8:
            for part in value:
                if isinstance(part, Tensor):
                    found[index, name] = tuple(part.shape)
    return found


def _step(before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> Step | None:
    """How one shape grew into the other; None if it did not grow in exactly one dimension."""
    if before is None or after is None or len(before) != len(after):
        return None
    grown = [(i, b - a) for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    return grown[0] if len(grown) == 1 and grown[0][1] > 0 else None
