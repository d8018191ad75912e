"""Copies of a layer: what they share, and which of them would compute with the weights of another.

``copy.deepcopy`` copies modules, and what is bound or partially applied, but never a function. A
lambda that closes over a module goes on calling that very module from every copy: an average of
weights would average nothing, and train with the live ones.
"""

from __future__ import annotations

import copy
import types
from typing import Any

from .forms import bases_of, content_of, form_of, slots_of
from .holdings import STANDARD, search


class LeftOut:
    """What stands for a process group in a file: it belongs to the processes that made it."""

    def __repr__(self) -> str:
        return "a process group that was left out when the layer was pickled"


def deep_copy(layer: Any, memo: dict[int, Any]) -> Any:
    """A copy with modules of its own, which shares the process group and on_step."""
    check_copied(layer.f)
    for name in ("process_group", "on_step"):
        shared = layer.options.get(name)
        if shared is not None:
            memo[id(shared)] = shared
    copied = layer.__class__.__new__(layer.__class__)
    memo[id(layer)] = copied
    state = dict(layer.__dict__)
    state.pop("_compiled_call_impl", None)
    copied.__setstate__(copy.deepcopy(state, memo))
    return copied


def pickled_state(state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a layer, without its process group."""
    options = state["options"]
    if options.get("process_group") is None:
        return state
    return {**state, "options": {**options, "process_group": LeftOut()}}


def check_left_out(options: dict[str, Any]) -> None:
    """ValueError where a layer came out of a file and was not given its process group again."""
    if isinstance(options.get("process_group"), LeftOut):
        raise ValueError(
            "process_group: expected to be given again to a layer that was pickled, got "
            f"{options['process_group']}; set layer.process_group to the group of these processes, "
            "or to None"
        )


def check_copied(f: Any) -> None:
    """TypeError where a copy of f would call the modules, or read the tensors, of the original."""
    for function in _shared(f):
        held = search([function])
        kept = [type(m).__name__ for m in held.modules]
        kept += ["a tensor that requires grad" for t in held.tensors if t.requires_grad]
        if kept:
            raise TypeError(
                f"f: expected to be copied with all that it reads, got a function that closes over "
                f"{kept[0]}, which its copies would share; pass the module itself, a bound method "
                "of it or functools.partial(function, module), which deepcopy copies"
            )


def _shared(f: Any) -> list[types.FunctionType]:
    """The functions that a copy of f shares with f, wherever it holds them."""
    found: list[types.FunctionType] = []
    seen: set[int] = set()
    stack = [f]
    while stack:
        value = stack.pop()
        form = form_of(type(value))
        if not form or id(value) in seen:
            continue
        seen.add(id(value))
        if form == "function":
            found.append(value)
        else:
            stack += _copied(value, form)
    return found


def _copied(value: Any, form: str) -> list[Any]:
    """What deepcopy copies with a value. Hooks of modules are not looked at: most only watch."""
    if form == "module":
        space = object.__getattribute__(value, "__dict__")
        children = [*(space.get("_modules") or {}).values()]
        if bases_of(type(value)) is None:  # torch.compile makes its own functions again
            return children
        return children + [v for n, v in space.items() if n not in _NOT_COPIED]
    if form == "partial":
        return [value.func, *value.args, *value.keywords.values()]
    if form == "method":
        return [value.__self__]
    if form == "dict":
        return [*dict.values(value)]
    if form == "sequence":
        return [*value]
    if form == "object":
        parts = content_of(value, slots_of(type(value)))
        return [*parts, *getattr(value, "__dict__", {}).values()]
    return []


_NOT_COPIED = STANDARD | {"_compiled_call_impl"}
