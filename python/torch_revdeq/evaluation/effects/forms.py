"""How ``holdings`` looks into an object: by its type, its class, and the code of a function."""

from __future__ import annotations

import dis
import enum
import functools
import operator
import sys
import types
import weakref
from collections import UserDict, UserList, deque
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_TRAINERS = (
    *("lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities", "accelerate"),
    *("deepspeed", "opacus", "ray", "ignite", "composer", "hydra", "omegaconf"),
    *("wandb", "tensorboard", "tqdm", "rich", "loguru"),
)
"""Packages whose objects are not part of f, and would lead to a whole training program."""

_LIBRARIES = (
    *("torch", "torch_revdeq", "revdeq_kernels"),
    *("numpy", "scipy", "pandas", "PIL", "triton"),
)

FOREIGN = frozenset({*sys.stdlib_module_names, *_LIBRARIES, *_TRAINERS})
"""Packages whose classes are not searched, unless they are modules."""

SEQUENCES = (list, tuple, deque, set, frozenset)


@functools.cache
def _forms() -> dict[type, str]:
    """How to look into built-in and library types."""
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
def form_of(kind: type) -> str:
    """How to look into an object of this type; empty: not at all."""
    if issubclass(kind, nn.Module):
        return "module"
    if issubclass(kind, Tensor):
        return "tensor"
    if kind in _forms():
        return _forms()[kind]
    if kind.__name__ == "ndarray" and kind.__module__ == "numpy":
        return "array"
    if kind is torch.Size or issubclass(kind, (enum.Enum, type)):
        return ""
    for base, form in (
        (functools.partial, "partial"),
        (dict, "dict"),
        (SEQUENCES, "sequence"),
    ):
        if issubclass(kind, base):
            return form
    return "" if _package(kind) in FOREIGN else "object"


def _package(kind: type) -> str:
    name = kind.__dict__.get("__module__", "builtins")
    return name.partition(".")[0] if isinstance(name, str) else "builtins"


# ---- what is known of a class, and of a function ---------------------------------------------


@functools.lru_cache(maxsize=1024)
def bases_of(kind: type) -> tuple[type, ...] | None:
    """The bases of a class, without those of torch and other foreign packages.

    None where torch itself manages the attributes.
    """
    if kind.__module__.startswith(("torch._dynamo.", "torch.distributed.", "torch.nn.parallel.")):
        return None
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and issubclass(kind, fsdp.FSDPModule):
        return None
    return tuple(base for base in kind.__mro__ if _package(base) not in FOREIGN)


def traits_of(bases: tuple[type, ...]) -> list[object]:
    """The current contents of classes: functions, modules, containers."""
    rows = [row for base in bases for row in base.__dict__.items()]
    return [v for n, v in rows if form_of(type(v)) and (n == "__call__" or not n.startswith("__"))]


@functools.lru_cache(maxsize=1024)
def slots_of(kind: type) -> tuple[Any, ...]:
    """The descriptors of ``__slots__``."""
    return tuple(
        value
        for base in kind.__mro__
        for value in base.__dict__.values()
        if type(value) is types.MemberDescriptorType
    )


def content_of(value: object, slots: tuple[Any, ...]) -> list[Any]:
    """The contents of slots; None for empty ones."""
    return [_content(value, slot) for slot in slots]


def _content(value: object, slot: Any) -> Any:
    try:
        return slot.__get__(value)
    except AttributeError:
        return None


class Global:
    """A global variable that a function assigns, as a descriptor of the globals dict."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __get__(self, space: dict[str, Any], _: Any = None) -> Any:
        """Its value."""
        return space.get(self.__name__)

    def __set__(self, space: dict[str, Any], value: Any) -> None:
        """Assign it."""
        space[self.__name__] = value


class Globals(NamedTuple):
    """The globals that a function reads, those it assigns, and closed-over variables it assigns."""

    named: tuple[str, ...]
    assigned: tuple[Global, ...]
    cells: frozenset[str]


_known_globals: dict[int, tuple[types.CodeType, Globals]] = {}


def globals_of(code: types.CodeType) -> Globals:
    """The globals of a function, and of functions defined in it."""
    known = _known_globals.get(id(code))
    if known is not None:
        return known[1]
    if len(_known_globals) > 4096:
        _known_globals.clear()
    steps = [(i.opname, i.argval) for i in dis.get_instructions(code)]
    named = {name for what, name in steps if what in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL")}
    assigned = {name for what, name in steps if what == "STORE_GLOBAL"}
    cells = {name for what, name in steps if what == "STORE_DEREF"}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            named.update(globals_of(constant).named)
            assigned.update(slot.__name__ for slot in globals_of(constant).assigned)
            cells.update(globals_of(constant).cells)
    own = frozenset(cells.intersection(code.co_freevars))
    found = Globals(tuple(sorted(named)), tuple(map(Global, sorted(assigned))), own)
    _known_globals[id(code)] = code, found
    return found


def installed(code: types.CodeType) -> bool:
    """Whether a function belongs to an installed package, which does not refer to user objects."""
    return "site-packages" in code.co_filename or "dist-packages" in code.co_filename


def package_of(function: Any) -> str:
    """The package of a function, by its ``__module__``."""
    return (function.__module__ or "").partition(".")[0]
