"""What f holds: the modules, tensors, attributes and containers that can be reached from it.

Python shows what most callables are made of: what is bound, partially applied, closed over or named
as a global, and what stands in attributes and containers. The search runs none of the user's code:
no property, no ``__getattr__``, no ``__len__``. It stops at what belongs to torch, numpy and the
standard library, and is bounded.
"""

from __future__ import annotations

import dis
import enum
import functools
import operator
import sys
import types
import weakref
from collections import OrderedDict, UserDict, UserList, deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Space = dict[str, Any]
"""The attributes of a module or an object: its ``__dict__``."""

_MOST = 1000
"""Objects to look into that are reached by attributes, and elements of one container."""

_KEPT_WHOLE = 10_000
"""Elements of a container whose contents are compared."""

_STANDARD = frozenset(vars(nn.Module()))
_PLAIN_DICTS = (dict, OrderedDict)
_plain: set[tuple[type, int]] = set()  # classes of torch's, and how many attributes all plain
_FOREIGN = frozenset(
    {
        *sys.stdlib_module_names,
        *("torch", "torch_revdeq", "revdeq_kernels", "numpy", "scipy", "pandas", "PIL", "triton"),
        # Their objects are no part of f, and lead to whole trainers.
        *(
            "lightning",
            "pytorch_lightning",
            "lightning_fabric",
            "lightning_utilities",
            "accelerate",
        ),
        *("deepspeed", "opacus", "ray", "ignite", "composer", "hydra", "omegaconf"),
        *("wandb", "tensorboard", "tqdm", "rich", "loguru"),
    }
)
"""Packages whose classes are not looked into, unless they are modules."""

_SEQUENCES = (list, tuple, deque, set, frozenset)


class Holdings:
    """What was found."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []
        self.scripted: list[nn.Module] = []  # of torch.jit, among them
        self.spaces: list[Space] = []
        self.own: list[tuple[str, Space]] = []  # of these, with names: not those of torch's classes
        self.slotted: list[tuple[object, tuple[Any, ...]]] = []  # objects, and their slots
        self.containers: list[Any] = []
        self.cells: list[types.CellType] = []
        self.tensors: list[Tensor] = []


def search(roots: Iterable[object]) -> Holdings:
    """Everything that can be reached from the roots."""
    return _Search(roots).found


@functools.cache
def _forms() -> dict[type, str]:
    """How to look into types that are no user's."""
    forms: dict[type, str] = {
        types.FunctionType: "function",
        types.MethodType: "method",
        types.BuiltinMethodType: "builtin",
        functools.partial: "partial",
        functools.partialmethod: "partial",
        type(functools.lru_cache(abs)): "wrapper",
        operator.methodcaller: "methodcaller",
        weakref.ref: "weak",
        staticmethod: "wrapper",
        classmethod: "wrapper",
        types.SimpleNamespace: "object",
        UserDict: "object",
        UserList: "object",
    }
    return forms


@functools.lru_cache(maxsize=4096)
def _form(kind: type) -> str:
    """How to look into an object of this type; empty: not at all."""
    if issubclass(kind, nn.Module):
        return "module"
    if issubclass(kind, Tensor):
        return "tensor"
    if kind in _forms():
        return _forms()[kind]
    if kind is torch.Size or issubclass(kind, (enum.Enum, type)):
        return ""
    for base, form in (
        (functools.partial, "partial"),
        (dict, "dict"),
        (_SEQUENCES, "sequence"),
    ):
        if issubclass(kind, base):
            return form
    return "" if _package(kind) in _FOREIGN else "object"


def _package(kind: type) -> str:
    name = kind.__dict__.get("__module__", "builtins")
    return name.partition(".")[0] if isinstance(name, str) else "builtins"


class _Search:
    """One search. What is near is part of f; what is far was reached by attributes and hooks."""

    def __init__(self, roots: Iterable[object]) -> None:
        self.found = Holdings()
        self.seen: set[int] = set()
        self.near, self.far, self.alive = list(roots), [], list[object]()
        self.classes: set[type] = set()
        self.budget, self.is_near = 10 * _MOST, True
        while self.near and self.budget > 0:
            self._look(self.near.pop())
        self.budget, self.is_near = _MOST, False
        for value in self.far:  # which grows
            self._look(value)
            if self.budget <= 0:
                break

    def _look(self, value: object) -> None:
        form = _form(type(value))
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
        """The module and those below it, in the order of ``modules()``."""
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
            if (kind, len(space)) in _plain:
                spaces.append(space)
                continue
            traits = _traits(kind, len(kind.__dict__))
            if traits is None:
                continue
            spaces.append(space)
            held = [space[n] for n in space if n not in _STANDARD and _form(type(space[n]))]
            if traits:
                self.found.own.append((kind.__name__, space))
                if kind not in self.classes:
                    self.classes.add(kind)
                    far.extend(traits)
                far.extend(held)
            elif held:
                far.extend(held)
            else:
                _plain.add((kind, len(space)))

    def _unusual(self, module: Any, children: Any) -> None:
        """A module of torch.jit, or one that is not set up."""
        if children is not None and issubclass(type(module), torch.jit.ScriptModule):
            self.found.scripted.append(module)
            self.found.modules.append(module)
            for child in module.children():
                self._look(child)

    # ---- callables

    def _function(self, value: types.FunctionType) -> None:
        if value.__dict__:  # what wraps another leaves it there
            self._push(value.__dict__.values())
        if _package_of(value) == "torch":
            return
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # a variable that has no value yet
                self._push((cell.cell_contents,))
                self.found.cells.append(cell)
        self._push(value.__defaults__ or ())
        self._push((value.__kwdefaults__ or {}).values())
        if self.is_near or not _installed(value.__code__):
            space = value.__globals__
            for name in _globals(value.__code__):
                held = space.get(name)
                form = _form(type(held))
                if form in ("module", "function", "method", "partial", "wrapper"):
                    if form != "function" or _package_of(held) not in _FOREIGN:
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

    def _dict(self, value: dict[Any, Any]) -> None:
        if dict.__len__(value) <= _KEPT_WHOLE:
            self.found.containers.append(value)
        if dict.__len__(value) <= _MOST:
            self._push(dict.values(value))

    def _sequence(self, value: Any) -> None:
        base = next(t for t in _SEQUENCES if issubclass(type(value), t))
        length = base.__len__(value)
        if length <= _KEPT_WHOLE and base not in (tuple, frozenset):
            self.found.containers.append(value)
        if length <= _MOST:
            self._push(base.__iter__(value))

    def _object(self, value: object) -> None:
        with suppress(AttributeError):
            space = object.__getattribute__(value, "__dict__")
            if type(space) is dict:
                self.found.spaces.append(space)
                self.found.own.append((type(value).__name__, space))
                self._push(space.values())
        slots = _slots(type(value))
        if slots:
            self.found.slotted.append((value, slots))
            self._push(content_of(value, slots))
        self.far.extend(_traits(type(value), len(type(value).__dict__)) or ())


# ---- what is known of a class, and of a function ---------------------------------------------


@functools.lru_cache(maxsize=1024)
def _traits(kind: type, _: int) -> tuple[object, ...] | None:
    """What a class holds and does: functions, modules, containers, and at its end its own name.

    Nothing for a class of torch's, and None where torch itself looks after the attributes. The
    number of the class's attributes is given so that a new one is noticed.
    """
    if kind.__module__.startswith(("torch._dynamo.", "torch.distributed.", "torch.nn.parallel.")):
        return None
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and issubclass(kind, fsdp.FSDPModule):
        return None
    own = [base for base in kind.__mro__ if _package(base) not in _FOREIGN]
    if not own:
        return ()
    rows = [row for base in own for row in base.__dict__.items()]
    held = [v for n, v in rows if _form(type(v)) and (n == "__call__" or not n.startswith("__"))]
    return (*held, kind.__name__)


@functools.lru_cache(maxsize=1024)
def _slots(kind: type) -> tuple[Any, ...]:
    """The descriptors of ``__slots__``."""
    return tuple(
        value
        for base in kind.__mro__
        for value in base.__dict__.values()
        if type(value) is types.MemberDescriptorType
    )


def content_of(value: object, slots: tuple[Any, ...]) -> list[Any]:
    """What stands in slots; None in those that are empty."""
    return [_content(value, slot) for slot in slots]


def _content(value: object, slot: Any) -> Any:
    try:
        return slot.__get__(value)
    except AttributeError:
        return None


_known_globals: dict[int, tuple[types.CodeType, tuple[str, ...]]] = {}


def _globals(code: types.CodeType) -> tuple[str, ...]:
    """The globals that a function names, also in the functions that it makes."""
    known = _known_globals.get(id(code))
    if known is not None:
        return known[1]
    if len(_known_globals) > 4096:
        _known_globals.clear()
    names = {i.argval for i in dis.get_instructions(code) if i.opname in _LOADS}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(_globals(constant))
    found = tuple(sorted(names))
    _known_globals[id(code)] = code, found
    return found


_LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL")


def _installed(code: types.CodeType) -> bool:
    return "site-packages" in code.co_filename or "dist-packages" in code.co_filename


def _package_of(function: Any) -> str:
    return (function.__module__ or "").partition(".")[0]
