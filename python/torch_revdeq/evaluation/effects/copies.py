"""Copies of a layer: what they share, and which would compute with the original's weights.

``copy.deepcopy`` copies modules, bound methods and partials, but never a function. A lambda that
closes over a module calls that same module from every copy: a weight average (EMA) would average
nothing and use the live weights.
"""

from __future__ import annotations

import copy
import pickle
import sys
import types
from typing import Any

from .forms import bases_of, content_of, form_of, slots_of
from .holdings import STANDARD, search


class LeftOut:
    """Replaces a process group in a pickle: the group belongs to the processes that made it."""

    def __repr__(self) -> str:
        return "a process group that was left out when the layer was pickled"


def deep_copy(layer: Any, memo: dict[int, Any]) -> Any:
    """A copy with its own modules, which shares the process group and on_step."""
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


def check_pickled(values: dict[str, Any]) -> None:
    """pickle's error for a function that it cannot find by name, with what to do about it.

    Only where no other pickler, such as cloudpickle, could be at work.
    """
    if any(name.rpartition(".")[2] in _OTHER_PICKLERS for name in sys.modules):
        return
    for name, value in values.items():
        if type(value) is types.FunctionType:
            try:
                pickle.dumps(value)  # its name
            except (pickle.PicklingError, AttributeError) as error:
                raise type(error)(
                    f"{name}: expected a function that pickle finds by its name, got "
                    f"{value.__qualname__}; define it as a module or as a function at the top "
                    "level of a file, or save layer.state_dict() instead of the layer"
                ) from error


_OTHER_PICKLERS = ("cloudpickle", "dill")


def check_left_out(options: dict[str, Any]) -> None:
    """ValueError if a layer was unpickled and its process group was not set again."""
    if isinstance(options.get("process_group"), LeftOut):
        raise ValueError(
            "process_group: expected to be set again on a layer that was pickled, got "
            f"{options['process_group']}; set layer.process_group to the group of these processes, "
            "or to None"
        )


def check_copied(f: Any) -> None:
    """TypeError if a copy of f would use the modules or tensors of the original."""
    for function in _shared(f):
        held = search([function])
        kept = [type(m).__name__ for m in held.modules]
        kept += ["a tensor that requires grad" for t in held.tensors if t.requires_grad]
        if kept:
            raise TypeError(
                f"f: expected to be copied with everything it reads, got a function that closes "
                f"over {kept[0]}, which its copies would share; pass the module itself, one of its "
                "bound methods, or functools.partial(function, module), which deepcopy copies"
            )


def _shared(f: Any) -> list[types.FunctionType]:
    """The functions that a copy of f would share with f."""
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
    """What deepcopy copies with a value. Hooks of modules are ignored: most only observe."""
    if form == "module":
        space = object.__getattribute__(value, "__dict__")
        children = [*(space.get("_modules") or {}).values()]
        if bases_of(type(value)) is None:  # torch.compile recreates its own functions
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
