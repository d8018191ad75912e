"""What f holds: the modules, tensors, attributes and containers that are reachable from it.

Python exposes the parts of most callables: bound and partial arguments, closures, globals,
attributes and containers. The search runs no user code: no property, no ``__getattr__``, no
``__len__``. It stops at objects of torch, numpy and the standard library, and is bounded.
"""

from __future__ import annotations

import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .forms import (
    FOREIGN,
    SEQUENCES,
    bases_of,
    content_of,
    form_of,
    globals_of,
    installed,
    package_of,
    slots_of,
    traits_of,
)

Space = dict[str, Any]
"""The attributes of a module or an object: its ``__dict__``."""

_MOST = 1000
"""Limits: objects reached by attributes, and elements of one container."""

_KEPT_WHOLE = 10_000
"""Largest container whose contents are compared; for a longer one (a log) only the length is."""

STANDARD = frozenset(vars(nn.Module()))
"""The attributes that every module has."""

_PLAIN_DICTS = (dict, OrderedDict)
_INERT = frozenset({bool, int, float, complex, str, bytes, type(None)})
_layouts: dict[tuple[type, int], _Layout] = {}


class _Layout(NamedTuple):
    """What is known of modules of a class with a given number of attributes; holds no values."""

    bases: tuple[type, ...] | None  # see ``bases_of``
    read: Callable[[Space], tuple[Any, ...]]  # reads the attributes that not every module has


def _learn(kind: type, space: Space) -> _Layout:
    """The attribute names. If a module has all of them, it has no others (same count)."""
    if len(_layouts) > 1024:
        _layouts.clear()
    names = [name for name in space if name not in STANDARD]
    # With two names an itemgetter returns a tuple.
    layout = _Layout(bases_of(kind), itemgetter("_modules", "_modules", *names))
    _layouts[kind, len(space)] = layout
    return layout


class Holdings:
    """What was found."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []
        self.scripted: list[nn.Module] = []  # of torch.jit, among them
        self.spaces: list[Space] = []
        self.own: list[tuple[str, Space]] = []  # of modules, with names, except torch's classes
        self.slotted: list[tuple[object, tuple[Any, ...]]] = []  # objects, and their slots
        self.containers: list[Any] = []
        self.long: list[Any] = []  # lists, deques and dicts compared by length only
        self.arrays: list[Any] = []  # of numpy
        self.classes: list[type] = []  # of modules and objects, without those of torch
        self.cells: list[types.CellType] = []
        self.tensors: list[Tensor] = []

    def is_bare(self) -> bool:
        """Whether it contains nothing that f could write."""
        places = (self.modules, self.spaces, self.slotted, self.containers, self.cells)
        places += (self.long, self.arrays)
        return not any(places) and all(t.requires_grad for t in self.tensors)


def search(roots: Iterable[object]) -> Holdings:
    """Everything that is reachable from the roots."""
    return _Search(roots).found


class _Search:
    """One search. `near` objects are part of f; `far` ones were reached by attributes or hooks."""

    def __init__(self, roots: Iterable[object]) -> None:
        self.found = Holdings()
        self.seen: set[int] = set()
        self.near, self.far, self.alive = list(roots), [], list[object]()
        self.classes: set[type] = set()
        self.budget, self.is_near = 10 * _MOST, True
        while self.near and self.budget > 0:
            self._look(self.near.pop())
        self.budget, self.is_near = _MOST, False
        for value in self.far:  # grows in the loop
            self._look(value)
            if self.budget <= 0:
                break

    def _look(self, value: object) -> None:
        form = form_of(type(value))
        if form and id(value) not in self.seen:
            if form == "module":
                self._modules(value)
                return
            self.seen.add(id(value))
            self.budget -= 1
            getattr(self, f"_{form}")(value)

    def _push(self, values: Iterable[object]) -> None:
        (self.near if self.is_near else self.far).extend(values)

    # ---- modules

    def _modules(self, root: Any) -> None:
        """The module and its submodules, in the order of ``modules()``."""
        seen, far = self.seen, self.far
        modules, spaces = self.found.modules, self.found.spaces
        stack = [root]
        while stack:
            module = stack.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            kind = type(module)
            space: Space = object.__getattribute__(module, "__dict__")
            children = space.get("_modules")
            if type(children) not in _PLAIN_DICTS:
                self._unusual(module, children)
                continue
            if kind is DistributedDataParallel and not self.is_near:
                continue  # what holds f, not what f holds
            if children:
                stack.extend([c for c in reversed(children.values()) if c is not None])
            modules.append(module)
            if space.get("_forward_hooks"):
                far.extend(space["_forward_hooks"].values())
            if space.get("_forward_pre_hooks"):
                far.extend(space["_forward_pre_hooks"].values())
            layout = _layouts.get((kind, len(space))) or _learn(kind, space)
            if layout.bases is None:
                continue
            spaces.append(space)
            try:
                values = layout.read(space)[2:]
            except KeyError:  # as many attributes as another module, but different ones
                values = _learn(kind, space).read(space)[2:]
            if layout.bases:
                self.found.own.append((kind.__name__, space))
                self._class(kind, layout.bases)
            if not _INERT.issuperset(map(type, values)):
                far.extend([value for value in values if form_of(type(value))])

    def _class(self, kind: type, bases: tuple[type, ...]) -> None:
        """What a class holds; read again by each search, because it may have changed."""
        if kind not in self.classes:
            self.classes.add(kind)
            self.found.classes += [b for b in bases if b not in self.found.classes]
            self.far.extend(traits_of(bases))

    def _unusual(self, module: Any, children: Any) -> None:
        """A module of torch.jit, or one that is not set up."""
        if children is not None and issubclass(type(module), torch.jit.ScriptModule):
            self.found.scripted.append(module)
            self.found.modules.append(module)
            for child in module.children():
                self._look(child)

    # ---- callables

    def _function(self, value: types.FunctionType) -> None:
        if value.__dict__:  # a wrapper stores the wrapped function there
            self._push(value.__dict__.values())
        if package_of(value) in ("torch", "torch_revdeq"):
            return
        if value.__closure__:
            assigned = globals_of(value.__code__).cells
            for name, cell in zip(value.__code__.co_freevars, value.__closure__, strict=True):
                with suppress(ValueError):  # a variable without a value
                    self._push((cell.cell_contents,))
                if name in assigned:
                    self.found.cells.append(cell)
        self._push(value.__defaults__ or ())
        self._push((value.__kwdefaults__ or {}).values())
        if self.is_near or not installed(value.__code__):
            space = value.__globals__
            names = globals_of(value.__code__)
            if names.assigned:
                self.found.slotted.append((space, names.assigned))
            for name in names.named:
                held = space.get(name)
                form = form_of(type(held))
                if form in ("module", "function", "method", "partial", "wrapper"):
                    if form != "function" or package_of(held) not in FOREIGN:
                        self._push((held,))
                elif form:
                    self.far.append(held)

    def _method(self, value: types.MethodType) -> None:
        self._push((value.__self__, value.__func__))

    def _builtin(self, value: types.BuiltinMethodType) -> None:
        if not isinstance(value.__self__, types.ModuleType):
            self._push((value.__self__,))

    def _partial(self, value: Any) -> None:
        self._push((value.func, *value.args, *value.keywords.values()))

    def _wrapper(self, value: Any) -> None:
        self._push((value.__wrapped__,))

    def _methodcaller(self, value: Any) -> None:
        parts = value.__reduce__()
        self.alive.append(parts)
        self._push(parts)

    def _weak(self, value: weakref.ref[Any]) -> None:
        target = value()
        self.alive.append(target)
        self.far.append(target)

    # ---- what holds others

    def _tensor(self, value: Tensor) -> None:
        self.found.tensors.append(value)

    def _array(self, value: Any) -> None:
        self.found.arrays.append(value)

    def _dict(self, value: dict[Any, Any]) -> None:
        whole = dict.__len__(value) <= _KEPT_WHOLE
        (self.found.containers if whole else self.found.long).append(value)
        if dict.__len__(value) <= _MOST:
            self._push(dict.values(value))

    def _sequence(self, value: Any) -> None:
        base = next(t for t in SEQUENCES if issubclass(type(value), t))
        length = base.__len__(value)
        if length <= _KEPT_WHOLE and base not in (tuple, frozenset):
            self.found.containers.append(value)
        elif base in (list, deque):
            self.found.long.append(value)
        if length <= _MOST:
            self._push(base.__iter__(value))

    def _object(self, value: object) -> None:
        with suppress(AttributeError):
            space = object.__getattribute__(value, "__dict__")
            if type(space) is dict:
                self.found.spaces.append(space)
                self.found.own.append((type(value).__name__, space))
                self._push(space.values())
        slots = slots_of(type(value))
        if slots:
            self.found.slotted.append((value, slots))
            self._push(content_of(value, slots))
        self._class(type(value), bases_of(type(value)) or ())
