"""The options that a layer keeps: checked when they are given, read and changed as attributes."""

from __future__ import annotations

from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..evaluation.effects.copies import LeftOut
from .names import NO_OPTION, meant, unknown
from .reading import check_given
from .table import TABLE
from .values import shown

OF_THE_CALL = ("z0", "y0", "kwargs")
"""What is given to a solve beside options."""


_TAKE_FUNCTIONS = ("beta", "max_steps", "on_step")
"""Options that a method of a subclass could be meant for."""

_ABSENT = object()


def check_class(kind: type) -> None:
    """TypeError for a class whose attribute has the name of an option, which would do nothing.

    `compile` is a method of every module, and a subclass may have other methods of its own.
    """
    for name in TABLE:
        value = getattr(kind, name, _ABSENT)
        if value is _ABSENT or name == "compile" or isinstance(value, OptionAttribute):
            continue
        if name not in _TAKE_FUNCTIONS and isinstance(value, (FunctionType, MethodType)):
            continue
        raise TypeError(
            f"{name}: expected an option of {kind.__name__} to be given when a layer is made, got "
            f"a class attribute, which would hide it; pass it in {kind.__name__}.__init__, "
            f"super().__init__(f, {name}=...)"
        )


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options for a layer to keep; TypeError or ValueError for what ``solve`` would refuse.

    Plain values stay as they are. NumPy's become Python's, the only ones that compilers take, and
    the name of a dtype the dtype.
    """
    for name in options:
        if name not in TABLE:
            raise unknown(name)
    check_given(options)
    plain = (bool, int, float, str, type(None))
    return {
        n: v if type(v) in plain and n != "state" else TABLE[n].read(v) for n, v in options.items()
    }


class OptionAttribute(property):
    """An option of a layer as its attribute: what was given to it, or the default of ``solve``."""


def option(name: str) -> Any:
    """The attribute for an option; what is assigned is checked first."""
    default = TABLE[name].default

    def get(layer: Any) -> Any:
        return layer.options.get(name, default)

    def assign(layer: Any, value: Any) -> None:
        keep(layer, changed(layer, {name: value}))

    doc = f"The option ``{name}`` of ``solve``: {TABLE[name].kind}."
    return OptionAttribute(get, assign, doc=doc)


def is_option(layer: Any, name: str) -> bool:
    """Whether the layer's attribute of this name is the option: a subclass may have its own."""
    return isinstance(getattr(type(layer), name, None), OptionAttribute)


def check_new(layer: Any, name: str, value: Any) -> None:
    """AttributeError for an attribute that would do nothing where an option was meant."""
    if name == "compile" and not callable(value):
        raise AttributeError(
            f"compile: expected by layer.set_solver(compile={value!r}), or in a call, "
            f"layer(x, compile={value!r}), got an assignment: the attribute is nn.Module's method"
        )
    if not isinstance(value, (nn.Module, nn.Parameter)):
        said = mistaken(type(layer), name)
        if said is not None:
            raise AttributeError(said)


def mistaken(kind: type, name: str) -> str | None:
    """What to say of an attribute that a class does not have, if its name looks like an option."""
    if hasattr(kind, name):
        return None
    if name in OF_THE_CALL:
        return f"{name}: expected in the call of the layer, layer(x, {name}=...), got an attribute"
    meaning, place = meant(name), NO_OPTION.get(name)
    if meaning is None and place is None:
        return None
    what = f"the option is {meaning}, layer.{meaning} = ..." if meaning else place
    return f"{name}: expected an option of solve, got another name; {what}; {_declared(name)}"


def check_new_of_model(model: nn.Module, name: str, value: Any) -> None:
    """AttributeError for an attribute of a model where an option of its layers was meant."""
    if name == "compile" and not callable(value):
        raise AttributeError(
            f"compile: expected by model.set_solver(compile={value!r}), got an assignment: the "
            "attribute is nn.Module's method"
        )
    if not isinstance(value, (nn.Module, nn.Parameter)) and not hasattr(model, name):
        said = mistaken_of_model(type(model), name)
        if said is not None:
            raise AttributeError(said)


def mistaken_of_model(kind: type, name: str) -> str | None:
    """As ``mistaken``, for a model, whose layers have the options."""
    meaning, place = name if name in TABLE else meant(name), NO_OPTION.get(name)
    if hasattr(kind, name) or (meaning is None and place is None):
        return None
    what = f"model.set_solver({meaning}=...) changes all its layers" if meaning else place
    return (
        f"{name}: expected on a layer, got an attribute of {kind.__name__}; {what}; "
        f"{_declared(name)}"
    )


def _declared(name: str) -> str:
    return f"an attribute of your own is one that a subclass declares, {name} = None"


def changed(layer: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options as the layer is to keep them; nothing is changed yet.

    TypeError or ValueError for what ``solve`` would refuse, alone or with the layer's others.
    """
    kept = {"beta": layer.beta, **layer.options}
    if isinstance(kept.get("process_group"), LeftOut):
        del kept["process_group"]
    checked = check_options({**kept, **options})
    beta = options.get("beta")
    learned = isinstance(beta, nn.Parameter)
    if isinstance(beta, Tensor) and not learned and "beta" in layer._parameters:
        raise TypeError(
            "beta: expected a number or a Parameter in the place of a Parameter, got a tensor; "
            "pass nn.Parameter(beta), or float(beta)"
        )
    if "beta" in options and is_parametrized(layer, "beta") and not isinstance(beta, Tensor):
        raise TypeError(
            f"beta: expected a tensor where it is parametrized, got {shown(beta)}; call "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'beta') first"
        )
    return {name: checked[name] for name in options}


def keep(layer: Any, options: dict[str, Any]) -> None:
    """Have the layer keep options that are ``changed`` ones."""
    rest = dict(options)
    if "beta" in rest:
        beta = rest.pop("beta")
        if not isinstance(beta, (Tensor, nn.Module)):  # to which torch lets no parameter give way
            for space in (layer._parameters, layer._buffers, layer._modules):
                space.pop("beta", None)
        nn.Module.__setattr__(layer, "beta", beta)
    layer.options.update(rest)
