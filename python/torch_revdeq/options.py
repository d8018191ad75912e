"""The options of ``solve``, in one table: what each may be, and the error for any other value.

``solve`` and ``RevDEQ`` read their options by ``TABLE``, and the table of docs/api/solver.md is
made of it. The values of one option are checked first, then the options among each other, then what
only a call knows: the dtype of z0, the steps that a function returns, the shapes of y0 and masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .float_pair import FLOAT_STATES
from .mapping import flatten
from .modules import is_sharded
from .problem import State
from .randomness import RNG
from .schedule import Schedule

Adjoint: TypeAlias = Literal["auto", "reversible", "backprop", "checkpoint", "hooks", "functional"]
Accumulate: TypeAlias = Literal["float32", "autograd"]

ADJOINTS = ("reversible", "hooks", "checkpoint", "backprop", "functional")
STORING = ("reversible", "hooks", "checkpoint", "backprop")
REVERSIBLE = ("reversible",)
UNFIT: Any = object()
"""What a reader returns for a value that the option does not take."""


@dataclass(frozen=True)
class Option:
    """One option of ``solve``.

    Attributes:
        kind: what it takes, for the reference.
        default: that of ``solve``.
        reader: from the value given to the one that the solver uses, or ``UNFIT``.
        expected: completes "name: expected ..., got ...".
        remedy: the way out, after that.
        adjoints: those that take another value than the default.
        error: the type of the error.
    """

    name: str
    kind: str
    default: Any
    reader: Callable[[Any], Any]
    expected: str
    remedy: str
    adjoints: tuple[str, ...] = ADJOINTS
    error: type[Exception] = ValueError

    def read(self, value: Any) -> Any:
        """The value as the solver uses it; an error that names the option for one it cannot use."""
        result = self.reader(value)
        if result is UNFIT:
            raise self.refusal(value)
        return result

    def refusal(self, value: Any, expected: str = "") -> Exception:
        """The error for a value that the option does not take."""
        remedy = self.remedy
        if isinstance(value, Tensor) and self.name in _CONVERTED:
            remedy = f"pass {_CONVERTED[self.name]}({self.name}), which reads it from its device"
        return self.error(
            f"{self.name}: expected {expected or self.expected}, got {_shown(value)}; {remedy}"
        )


_CONVERTED = dict.fromkeys(
    ("max_steps", "check_every", "frac_bits", "store_last", "memory_budget", "backward_steps"),
    "int",
) | dict.fromkeys(("tol", "check"), "float")
"""How a tensor becomes the number that the option takes. ``solve`` leaves that to the caller: on a
GPU it waits for the device."""


def _shown(value: Any) -> str:
    """A value in an error: short, and on one line."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} in {value.dtype}"
    plain = value is None or isinstance(value, (str, Real, list, tuple, dict, set, type))
    if plain or isinstance(value, torch.dtype):
        text = " ".join(repr(value).split())
        return text if len(text) <= 80 else f"{text[:77]}..."
    return f"an object of type {type(value).__name__}"


# ---- readers -------------------------------------------------------------------------------------


def _is_bool(value: Any) -> bool:
    kind = type(value)  # NumPy's own is neither a bool nor an Integral
    return kind is bool or (kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_"))


def integer(value: Any, least: int, most: float = math.inf) -> Any:
    """An int between the two; ``UNFIT`` for another value."""
    if type(value) is not int:
        if _is_bool(value) or not isinstance(value, Integral):
            return UNFIT
        value = int(value)
    return value if least <= value <= most else UNFIT


def number(value: Any) -> Any:
    """A float; ``UNFIT`` for what is no real number."""
    if type(value) is float:
        return value
    return float(value) if isinstance(value, Real) and not _is_bool(value) else UNFIT


def _at_least(least: int, *, words: tuple[Any, ...] = ()) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if value is None or isinstance(value, str):
            return value if value in words else UNFIT
        return integer(value, least)

    return read


def _word_of(choices: Iterable[str]) -> Callable[[Any], Any]:
    known = frozenset(choices)
    return lambda value: value if isinstance(value, str) and value in known else UNFIT


def _beta(value: Any) -> Any:
    """The kind alone: the values are held against the steps by ``Schedule``."""
    if type(value) is float or callable(value):
        return value
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else UNFIT
    if _is_sequence(value):
        return value
    return number(value)


def _is_sequence(value: Any) -> bool:
    """Whether it has elements in an order, as often as they are asked for."""
    if type(value).__module__ == "numpy":
        return bool(getattr(value, "ndim", 0))
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def _max_steps(value: Any) -> Any:
    return value if callable(value) else integer(value, 1)


def _tol(value: Any) -> Any:
    if value is None:
        return None
    result = number(value)
    return result if result is not UNFIT and result >= 0 else UNFIT  # NaN is not


def _per_sample(value: Any) -> Any:
    """How many leading dimensions make a sample; False for none."""
    if _is_bool(value):
        return 1 if value else False
    return integer(value, 1)


def _process_group(value: Any) -> Any:
    known = value is None or (dist.is_available() and isinstance(value, dist.ProcessGroup))
    return value if known else UNFIT


def _state(value: Any) -> Any:
    if isinstance(value, str):
        return value if value in ("auto", "exact") else UNFIT
    return value if isinstance(value, torch.dtype) and value in FLOAT_STATES else UNFIT


def _frac_bits(value: Any) -> Any:
    if isinstance(value, str):
        return value if value == "auto" else UNFIT
    return integer(value, 0, 30)


def _check(value: Any) -> Any:
    if _is_bool(value):
        return bool(value)
    if type(value) is int and value in (0, 1):  # meant as a bool, or as a tolerance?
        return UNFIT
    result = number(value)
    return result if result is not UNFIT and result > 0 else UNFIT


def _save_at(value: Any) -> Any:
    steps = [integer(step, 1) for step in value] if _is_sequence(value) else [UNFIT]
    return UNFIT if any(step is UNFIT for step in steps) else tuple(steps)


# ---- the table -----------------------------------------------------------------------------------

_DTYPES = ", ".join(map(str, FLOAT_STATES))


def _choice(name: str, default: str, choices: Sequence[str], remedy: str) -> Option:
    words = ", ".join(map(repr, choices))
    kind = ", ".join(f'"{choice}"' for choice in choices)
    return Option(name, kind, default, _word_of(choices), f"one of {words}", remedy)


_OPTIONS = (
    Option(
        "beta",
        "number in (0, 2) other than 1, sequence of them, function of the step, or tensor",
        0.5,
        _beta,
        "a number, a sequence with one for each step, a function of the step, or a floating-point "
        "tensor",
        "pass 0.5, a list, or a tensor (.float())",
        error=TypeError,
    ),
    Option(
        "max_steps",
        "integer >= 1, or function that returns one",
        8,
        _max_steps,
        "an integer of at least 1, or a function that returns one",
        "one step is two evaluations of f",
    ),
    Option(
        "tol",
        "number >= 0, or None",
        None,
        _tol,
        "a number of at least 0, or None",
        "pass a number such as 1e-3; None or 0 runs all steps",
        STORING,
    ),
    Option(
        "check_every",
        "integer >= 1",
        1,
        lambda value: integer(value, 1),
        "an integer of at least 1",
        "1 checks the residual in every step",
    ),
    Option(
        "per_sample",
        "bool, or integer >= 1",
        False,
        _per_sample,
        "True, False, or an integer of at least 1",
        "True judges every index of dimension 0; an integer says how many leading dimensions make "
        "a sample",
        STORING,
    ),
    Option(
        "process_group",
        "torch.distributed.ProcessGroup, or None",
        None,
        _process_group,
        "a ProcessGroup of torch.distributed, or None",
        "pass torch.distributed.group.WORLD, or what new_group() or mesh.get_group() returned",
        STORING,
    ),
    Option(
        "residual_mask",
        "bool tensor, pytree of them, or None",
        None,
        lambda value: value,
        "a bool tensor, or a pytree of them like z0",
        "it is True where a position counts in the residual",
    ),
    Option(
        "state",
        '"auto", "exact", or a floating-point dtype',
        "auto",
        _state,
        f"'auto', 'exact' or one of {_DTYPES}",
        "pass a dtype of torch itself, such as state=torch.float32",
    ),
    Option(
        "frac_bits",
        '"auto", or integer from 0 to 30',
        "auto",
        _frac_bits,
        "'auto' or an integer of 0 to 30",
        "'auto' chooses by the size of z0 and f(z0)",
        STORING,
    ),
    _choice("adjoint", "auto", get_args(Adjoint), "'auto' chooses by what f is"),
    _choice("rng", "auto", RNG, "'auto' replays the random numbers of f"),
    Option(
        "check",
        "bool, or number > 0",
        True,
        _check,
        "True, False, or a tolerance above 0",
        "False compares nothing, True takes the default tolerance, math.inf only measures",
    ),
    _choice("accumulate", "float32", get_args(Accumulate), "'float32' loses less"),
    Option(
        "store_last",
        'integer >= 0, or "auto"',
        0,
        _at_least(0, words=("auto",)),
        "'auto' or an integer of at least 0",
        "0 keeps no graph",
        REVERSIBLE,
    ),
    Option(
        "memory_budget",
        "integer >= 0, or None",
        None,
        _at_least(0, words=(None,)),
        "an integer of bytes, or None",
        "pass it with store_last='auto'",
        REVERSIBLE,
    ),
    Option(
        "save_at",
        "sequence of integers from 1 to max_steps",
        (),
        _save_at,
        "integers of 1 to max_steps, in a list or tuple",
        "z after 0 steps is z0, and () saves none",
        STORING,
    ),
    Option(
        "backward_steps",
        "integer >= 1, or None",
        None,
        _at_least(1, words=(None,)),
        "None or an integer of at least 1",
        "None differentiates all steps; for no gradient at all use torch.no_grad()",
        STORING,
    ),
)

TABLE = {option.name: option for option in _OPTIONS}
DEFAULTS = {option.name: option.default for option in _OPTIONS}
_SOME = tuple(o for o in _OPTIONS if o.adjoints is not ADJOINTS and o.name != "frac_bits")


def reference() -> str:
    """The table as markdown, for the documentation."""
    rows = ["| option | type | default | adjoints that take it |", "|---|---|---|---|"]
    adjoints = {ADJOINTS: "all", STORING: 'all but `"functional"`', REVERSIBLE: '`"reversible"`'}
    for option in _OPTIONS:
        default, text = option.default, isinstance(option.default, str)
        shown = f'"{default}"' if text else str(default)
        takers = adjoints[option.adjoints]
        rows.append(f"| `{option.name}` | {option.kind} | `{shown}` | {takers} |")
    return "\n".join(rows)


# ---- all of them ---------------------------------------------------------------------------------


def read_options(values: dict[str, Any]) -> dict[str, Any]:
    """The options as the solver uses them, in place: each by itself, then among each other."""
    for name, value in values.items():
        option = TABLE[name]
        if value is not option.default:
            values[name] = option.read(value)
    _check_together(values)
    return values


def with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """The options given and the defaults of the others, read. Names not in the table are left."""
    known = read_options({name: options.get(name, value) for name, value in DEFAULTS.items()})
    return {**options, **known}


def check_given(options: dict[str, Any]) -> None:
    """Refuse, before any call, what no call can take; also numbers of beta that are no betas."""
    given = with_defaults(options)
    beta, steps = given["beta"], given["max_steps"]
    if isinstance(steps, int):
        steps_to_save(given["save_at"], steps)
    if not isinstance(beta, Tensor) and not callable(beta):
        if callable(steps):
            steps = max(1, len(beta)) if _is_sequence(beta) else 1
        Schedule(beta, steps, exact=given["state"] == "exact")


def _check_together(given: dict[str, Any]) -> None:
    """ValueError for options that do not go together."""
    tol = given["tol"]
    if given["per_sample"] and tol is None:
        raise ValueError(
            "per_sample: expected with a tol, got tol=None; pass the residual below which a "
            "sample halts, such as tol=1e-3, or leave per_sample out"
        )
    if given["process_group"] is not None and tol is None:
        raise ValueError(
            "process_group: expected with a tol, got tol=None; without one all ranks run "
            "max_steps anyway"
        )
    if (given["memory_budget"] is not None) != (given["store_last"] == "auto"):
        raise ValueError(
            f"memory_budget: expected bytes with store_last='auto' and None otherwise, got "
            f"{given['memory_budget']} with store_last={given['store_last']!r}"
        )
    if tol:
        _check_with_tol(given, tol)
    if given["frac_bits"] != "auto" and isinstance(given["state"], torch.dtype):
        raise _bits_of_a_float(given["frac_bits"])
    if given["adjoint"] not in ("auto", "reversible"):
        check_adjoint(given["adjoint"], given)


def _check_with_tol(given: dict[str, Any], tol: float) -> None:
    if given["save_at"]:
        raise ValueError(
            f"save_at: expected without a tol, got tol={tol}, which may stop before; give tol=None"
        )
    if given["backward_steps"] is not None:
        raise ValueError(
            f"backward_steps: expected without a tol, got tol={tol}: the last steps are known when "
            "they are over; give tol=None, or draw max_steps yourself"
        )


def check_adjoint(adjoint: str, given: dict[str, Any]) -> None:
    """ValueError for an option that this adjoint does not take."""
    for option in _SOME:
        value = given[option.name]
        if adjoint not in option.adjoints and value != option.default:
            one = f"adjoint={option.adjoints[0]!r}" if len(option.adjoints) == 1 else "another one"
            reason = ", which alone can keep graphs" if option.name == "store_last" else ""
            raise ValueError(
                f"{option.name}: expected {option.default} with adjoint={adjoint!r}, got "
                f"{_shown(value)}; choose {one}{reason}, or leave {option.name} out"
            )


def one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """ValueError for what is none of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


# ---- what only a call knows ----------------------------------------------------------------------


def chosen_adjoint(adjoint: Adjoint, modules: Sequence[nn.Module], given: dict[str, Any]) -> str:
    """The adjoint that "auto" stands for: the one that an f with these modules can have."""
    if adjoint != "auto":
        return adjoint
    if not any(map(is_sharded, modules)):
        return "reversible"
    check_adjoint("hooks", given)
    return "hooks"


def drawn(max_steps: int | Callable[[], Any]) -> int:
    """The number of steps; a function is called for it."""
    if not callable(max_steps):
        return max_steps
    steps, option = max_steps(), TABLE["max_steps"]
    result = UNFIT if callable(steps) else option.reader(steps)
    if result is UNFIT:
        raise option.refusal(steps, "an integer of at least 1 from the function")
    return result


def state_dtype(state: State, leaves: Sequence[Tensor]) -> torch.dtype | None:
    """The dtype of a float state; None for an exact one."""
    if state not in ("auto", "exact"):
        return state
    if not any(leaf.dtype == torch.float64 for leaf in leaves):
        return None
    if state == "exact":
        raise TypeError(
            "state: expected z0 in float32 or less for 'exact', got float64; choose "
            "state=torch.float64"
        )
    return torch.float64


def fractional_bits(frac_bits: int | str, *, exact: bool) -> int | None:
    """The fractional bits of an exact state; None where they follow from the data."""
    if isinstance(frac_bits, str):
        return None
    if not exact:
        raise _bits_of_a_float(frac_bits)
    return frac_bits


def _bits_of_a_float(frac_bits: int) -> ValueError:
    return ValueError(
        f"frac_bits: expected 'auto' for a float state, got {frac_bits!r}; only state='exact' "
        "is in fixed point"
    )


def steps_to_save(save_at: Sequence[int], max_steps: int) -> tuple[int, ...]:
    """The steps after which z is kept, each once."""
    for step in save_at:
        if step > max_steps:
            raise ValueError(
                f"save_at: expected integers of 1 to max_steps={max_steps}, got {step!r}; z after "
                "0 steps is z0"
            )
    if len(set(save_at)) < len(save_at):
        raise ValueError(f"save_at: expected each step once, got {list(save_at)}; drop the second")
    return tuple(save_at)


def second_start(y0: Any, z0: list[Tensor], structure: Any) -> list[Tensor] | None:
    """The leaves of y0, which are like those of z0."""
    if y0 is None:
        return None
    leaves, other = flatten("y0", y0)
    if other != structure:
        raise TypeError(f"y0: expected the structure of z0, {structure}, got {other}")
    for leaf, like in zip(leaves, z0, strict=True):
        if (leaf.shape, leaf.dtype, leaf.device) != (like.shape, like.dtype, like.device):
            raise ValueError(
                f"y0: expected leaves like those of z0, {tuple(like.shape)} {like.dtype} on "
                f"{like.device}, got {tuple(leaf.shape)} {leaf.dtype} on {leaf.device}"
            )
    return leaves


def masks(mask: Any, z0: Sequence[Tensor], structure: Any) -> list[Tensor | None] | None:
    """For each leaf of z0, which of its positions count, in a shape that broadcasts over it."""
    if mask is None:
        return None
    if isinstance(mask, Tensor):
        return [_mask_of(mask, leaf) for leaf in z0]
    leaves, other = pytree.tree_flatten(mask)
    if other != structure:
        raise TypeError(
            f"residual_mask: expected a bool tensor, or a pytree of them like z0, {structure}, got "
            f"{_shown(mask)}; pass one tensor for all leaves, or one (or None) for each"
        )
    return [None if m is None else _mask_of(m, leaf) for m, leaf in zip(leaves, z0, strict=True)]


def _mask_of(mask: Any, leaf: Tensor) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        tensor = isinstance(mask, Tensor)
        remedy = "residual_mask.bool()" if tensor else "torch.as_tensor(residual_mask).bool()"
        raise TypeError(
            f"residual_mask: expected a bool tensor, got {_shown(mask)}; pass {remedy}, True where "
            "a position counts"
        )
    if mask.shape != leaf.shape[: mask.dim()]:
        raise ValueError(
            f"residual_mask: expected the shape of leading dimensions of a leaf of shape "
            f"{tuple(leaf.shape)}, got {tuple(mask.shape)}; pass one of shape "
            f"{tuple(leaf.shape[:2])} for example, or a pytree of masks like z0"
        )
    if mask.device != leaf.device:
        raise ValueError(
            f"residual_mask: expected on the device of z0, {leaf.device}, got {mask.device}; "
            "move it there"
        )
    return mask.detach().view(*mask.shape, *(1,) * (leaf.dim() - mask.dim()))
