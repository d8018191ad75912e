"""Readers that check and convert option values, and how errors show a value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree

from ..iteration.stopping import StoppingRule
from ..state.formats import FORMATS

UNFIT: Any = object()
"""What a reader returns for an invalid value."""

DTYPES = {str(d).removeprefix("torch."): d for d in FORMATS if isinstance(d, torch.dtype)}
"""The dtypes of float states, by name."""


def _is_bool(value: Any) -> bool:
    kind = type(value)  # NumPy's own is neither a bool nor an Integral
    return kind is bool or (kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_"))


def integer(value: Any, least: int, most: float = math.inf) -> Any:
    """An int from `least` to `most`, else ``UNFIT``."""
    if type(value) is not int:
        if _is_bool(value) or not isinstance(value, Integral):
            return UNFIT
        value = int(value)
    return value if least <= value <= most else UNFIT


def number(value: Any) -> Any:
    """A float, or ``UNFIT`` if it is not a real number."""
    if type(value) is float:
        return value
    return float(value) if isinstance(value, Real) and not _is_bool(value) else UNFIT


def at_least(least: int, *, words: tuple[Any, ...] = ()) -> Callable[[Any], Any]:
    """A reader of integers, and of some words in addition."""

    def read(value: Any) -> Any:
        if value is None or isinstance(value, str):
            return value if value in words else UNFIT
        return integer(value, least)

    return read


def word_of(choices: Iterable[str]) -> Callable[[Any], Any]:
    """A reader of words."""
    known = frozenset(choices)
    return lambda value: value if isinstance(value, str) and value in known else UNFIT


def read_beta(value: Any) -> Any:
    """Checks only the kind: ``BetaSchedule`` checks the values against the steps."""
    if type(value) is float:
        return value
    if isinstance(value, type) or type(value).__module__.startswith("torch.nn.modules."):
        return UNFIT  # callable, but not with a step number
    if callable(value):
        return value
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else UNFIT
    if is_sequence(value):
        return value.tolist() if type(value).__module__ == "numpy" else value
    return number(value)


def is_sequence(value: Any) -> bool:
    """Whether it is ordered and can be iterated repeatedly."""
    if type(value).__module__ == "numpy":
        return bool(getattr(value, "ndim", 0))
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def read_max_steps(value: Any) -> Any:
    """A number of steps, or a function, which is not called yet."""
    return value if callable(value) else integer(value, 1)


def read_tol(value: Any) -> Any:
    """A float of at least 0, a ``StoppingRule``, or None."""
    if value is None or isinstance(value, StoppingRule):
        return value
    refuse_class("tol", value, StoppingRule)
    result = number(value)
    return result if result is not UNFIT and result >= 0 else UNFIT  # excludes NaN


def refuse_class(name: str, value: Any, base: type) -> None:
    """TypeError for a class passed instead of an instance."""
    if isinstance(value, type) and issubclass(value, base):
        raise TypeError(
            f"{name}: expected an instance of {value.__name__}, got the class; pass "
            f"{value.__name__}(...)"
        )


def read_per_sample(value: Any) -> Any:
    """The number of leading dimensions that index samples; False for none."""
    if _is_bool(value):
        return 1 if value else False
    return integer(value, 1)


def read_process_group(value: Any) -> Any:
    """A group of processes, or None."""
    known = value is None or (dist.is_available() and isinstance(value, dist.ProcessGroup))
    return value if known else UNFIT


def read_residual_mask(value: Any) -> Any:
    """A pytree of bool tensors and None. Whether it fits the state is checked in the call."""
    for leaf in pytree.tree_leaves(value):
        if leaf is not None:
            check_mask(leaf)
    return value


def check_mask(mask: Any) -> None:
    """TypeError unless it is a bool tensor."""
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        return
    tensor = isinstance(mask, Tensor)
    remedy = "residual_mask.bool()" if tensor else "torch.as_tensor(residual_mask).bool()"
    raise TypeError(
        f"residual_mask: expected a bool tensor, got {shown(mask)}; pass {remedy}, True where "
        "a position counts"
    )


def read_state(value: Any) -> Any:
    """A word, or the dtype of a float state: torch's, its name, or NumPy's."""
    if isinstance(value, (str, torch.dtype)) and (value == "auto" or value in FORMATS):
        return value
    name = value
    if type(value).__module__ == "numpy.dtypes":
        name = getattr(value, "name", value)
    elif isinstance(value, type) and value.__module__ == "numpy":
        name = value.__name__
    return DTYPES.get(name.removeprefix("torch."), UNFIT) if isinstance(name, str) else UNFIT


def read_flag(value: Any) -> Any:
    """A bool, Python's or NumPy's."""
    return bool(value) if _is_bool(value) else UNFIT


def read_compile(value: Any) -> Any:
    """A bool, or "auto"."""
    if isinstance(value, str):
        return value if value == "auto" else UNFIT
    return read_flag(value)


def read_on_step(value: Any) -> Any:
    """A callable, or None."""
    return value if value is None or callable(value) else UNFIT


def read_frac_bits(value: Any) -> Any:
    """A number of bits, or "auto"."""
    if isinstance(value, str):
        return value if value == "auto" else UNFIT
    return integer(value, 0, 30)


def read_check(value: Any) -> Any:
    """A bool, or a tolerance."""
    if _is_bool(value):
        return bool(value)
    if type(value) is int and value in (0, 1):  # ambiguous: a bool or a tolerance?
        return UNFIT
    result = number(value)
    return result if result is not UNFIT and result > 0 else UNFIT


def read_save_at(value: Any) -> Any:
    """A tuple of steps. Whether that many steps are taken is checked in the call."""
    steps = [integer(step, 1) for step in value] if is_sequence(value) else [UNFIT]
    return UNFIT if any(step is UNFIT for step in steps) else tuple(steps)


def shown(value: Any) -> str:
    """A value as an error shows it: short, and on one line."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} in {value.dtype}"
    plain = value is None or isinstance(value, (str, Real, list, tuple, dict, set, type))
    if plain or isinstance(value, torch.dtype):
        text = " ".join(repr(value).split())
        return text if len(text) <= 80 else f"{text[:77]}..."
    return f"an object of type {type(value).__name__}"
