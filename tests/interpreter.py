"""Caching for Triton's interpreter, which then takes a third of the time.

Results do not change. Without caching, the interpreter patches the whole language again for every
function call within a kernel, derives the shape and name of a type for every tensor, and checks
every integer sum for an overflow that it does not report. Anything that another version of Triton
names differently is left unchanged.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import triton.language as tl
from triton.language import core
from triton.runtime import interpreter

REPLACED = "_replaced_for_a_launch"


def remember() -> None:
    """Enable caching in the interpreter of this process."""
    for owner, name, make in (
        (interpreter, "_patch_lang", _replace_once),
        (interpreter, "_get_np_dtype", _numpy_type_once),
        (core.block_type, "__init__", _type_once),
        (core.tensor, "__init__", _shape_once),
    ):
        if hasattr(owner, name):
            setattr(owner, name, make(getattr(owner, name)))
    builder = interpreter.interpreter_builder
    if not builder.options.debug:  # overflow would only be asserted then
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _replace_once(replace: Any) -> Any:
    """Reuse the language patched for a launch in the functions that its kernel calls.

    The marks for this are undone together with the patches.
    """
    known: dict[Any, list[Any]] = {}

    def replace_once(fn: Any) -> Any:
        if fn not in known:
            values = fn.__globals__.values()
            modules = [x for x in values if inspect.ismodule(x) and x in (tl, core)]
            known[fn] = [*modules, tl.tensor]
        if all(hasattr(owner, REPLACED) for owner in known[fn]):
            return interpreter._LangPatchScope()
        scope = replace(fn)
        for owner in known[fn]:
            scope.set_attr(owner, REPLACED, True)
        return scope

    return replace_once if hasattr(interpreter, "_LangPatchScope") else replace


def _numpy_type_once(derive: Any) -> Any:
    known: dict[Any, Any] = {}

    def numpy_type(kind: Any) -> Any:
        element = kind.element_ty if type(kind) is core.block_type else kind
        if isinstance(element, core.pointer_type):  # not hashable
            return derive(kind)
        if element not in known:
            known[element] = derive(kind)
        return known[element]

    return numpy_type


def _type_once(initialise: Any) -> Any:
    known: dict[Any, dict[str, Any]] = {}

    def initialise_once(self: Any, element: Any, shape: Any) -> None:
        key = (element.name, *(getattr(n, "value", n) for n in shape))
        if key not in known:
            initialise(self, element, shape)
            known[key] = dict(vars(self))
        vars(self).update(known[key])

    return initialise_once


def _shape_once(initialise: Any) -> Any:
    known: dict[str, dict[str, Any]] = {}

    def initialise_once(self: Any, handle: Any, kind: Any) -> None:
        if kind.name not in known:
            initialise(self, handle, kind)
            known[kind.name] = dict(vars(self))
        vars(self).update(known[kind.name], handle=handle)

    return initialise_once
