"""The options that a layer keeps: checked when set, accessible as attributes."""

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
"""Arguments of a solve that are not options of the layer."""


_TAKE_FUNCTIONS = ("beta", "max_steps", "on_step")
"""Option names that may also be methods of a subclass."""

_ABSENT = object()


def check_class(kind: type) -> None:
    """TypeError for a class attribute with the name of an option, which would have no effect.

    `compile` is a method of every module, and a subclass may define other methods.
    """
    for name in TABLE:
        value = getattr(kind, name, _ABSENT)
        if value is _ABSENT or name == "compile" or isinstance(value, OptionAttribute):
            continue
        if name not in _TAKE_FUNCTIONS and isinstance(value, (FunctionType, MethodType)):
            continue
        raise TypeError(
            f"{name}: expected an option of {kind.__name__} to be passed to the constructor, got "
            f"a class attribute, which would hide it; pass it in {kind.__name__}.__init__, "
            f"super().__init__(f, {name}=...)"
        )


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options for a layer to keep; TypeError or ValueError as in ``solve``.

    NumPy values become Python values, the only ones that compilers accept, and the name of a dtype
    becomes the dtype. Other values are unchanged.
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
    """An option of a layer as an attribute: its value, or the default of ``solve``."""


def option(name: str) -> Any:
    """The attribute for an option; assigned values are checked first."""
    default = TABLE[name].default

    def get(layer: Any) -> Any:
        return layer.options.get(name, default)

    def assign(layer: Any, value: Any) -> None:
        keep(layer, changed(layer, {name: value}))

    doc = f"The option ``{name}`` of ``solve``: {TABLE[name].kind}."
    return OptionAttribute(get, assign, doc=doc)


def is_option(layer: Any, name: str) -> bool:
    """Whether the attribute of this name is the option; a subclass may define its own."""
    return isinstance(getattr(type(layer), name, None), OptionAttribute)


def check_new(layer: Any, name: str, value: Any) -> None:
    """AttributeError for an attribute without effect whose name suggests an option."""
    if name == "compile" and not callable(value):
        raise AttributeError(
            f"compile: expected by layer.set_solver(compile={value!r}), or in a call, "
            f"layer(x, compile={value!r}), got an assignment; layer.compile is nn.Module's method"
        )
    if not isinstance(value, (nn.Module, nn.Parameter)):
        said = mistaken(type(layer), name)
        if said is not None:
            raise AttributeError(said)


def mistaken(kind: type, name: str) -> str | None:
    """The error message for an unknown attribute whose name looks like an option, else None."""
    if hasattr(kind, name):
        return None
    if name in OF_THE_CALL:
        return f"{name}: expected in the layer's call, layer(x, {name}=...), got an attribute"
    meaning, place = meant(name), NO_OPTION.get(name)
    if meaning is None and place is None:
        return None
    what = f"the option is {meaning}, layer.{meaning} = ..." if meaning else place
    return f"{name}: expected an option of solve, got another name; {what}; {_declared(name)}"


def check_new_of_model(model: nn.Module, name: str, value: Any) -> None:
    """AttributeError for an attribute of a model whose name suggests an option of its layers."""
    if name == "compile" and not callable(value):
        raise AttributeError(
            f"compile: expected by model.set_solver(compile={value!r}), got an assignment; "
            "model.compile is nn.Module's method"
        )
    if not isinstance(value, (nn.Module, nn.Parameter)) and not hasattr(model, name):
        said = mistaken_of_model(type(model), name)
        if said is not None:
            raise AttributeError(said)


def mistaken_of_model(kind: type, name: str) -> str | None:
    """Like ``mistaken``, for a model, whose layers have the options."""
    meaning, place = name if name in TABLE else meant(name), NO_OPTION.get(name)
    if hasattr(kind, name) or (meaning is None and place is None):
        return None
    what = f"model.set_solver({meaning}=...) changes all its layers" if meaning else place
    return (
        f"{name}: expected on a layer, got an attribute of {kind.__name__}; {what}; "
        f"{_declared(name)}"
    )


def _declared(name: str) -> str:
    return f"for an attribute of your own, declare it in a subclass, {name} = None"


def changed(layer: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options in the form that the layer keeps; nothing is changed yet.

    TypeError or ValueError as in ``solve``, for them alone and with the layer's other options.
    """
    kept = {"beta": layer.beta, **layer.options}
    if isinstance(kept.get("process_group"), LeftOut):
        del kept["process_group"]
    checked = check_options({**kept, **options})
    beta = options.get("beta")
    learned = isinstance(beta, nn.Parameter)
    if isinstance(beta, Tensor) and not learned and "beta" in layer._parameters:
        raise TypeError(
            "beta: expected a number or a Parameter to replace a Parameter, got a tensor; "
            "pass nn.Parameter(beta), or float(beta)"
        )
    if "beta" in options and is_parametrized(layer, "beta") and not isinstance(beta, Tensor):
        raise TypeError(
            f"beta: expected a tensor because it is parametrized, got {shown(beta)}; call "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'beta') first"
        )
    return {name: checked[name] for name in options}


def keep(layer: Any, options: dict[str, Any]) -> None:
    """Store options returned by ``changed`` in the layer."""
    rest = dict(options)
    if "beta" in rest:
        beta = rest.pop("beta")
        if not isinstance(beta, (Tensor, nn.Module)):  # torch does not let it replace a parameter
            for space in (layer._parameters, layer._buffers, layer._modules):
                space.pop("beta", None)
        nn.Module.__setattr__(layer, "beta", beta)
    layer.options.update(rest)
