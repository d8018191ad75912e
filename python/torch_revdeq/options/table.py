"""The options of ``solve``, in one table: what each may be, and the error for any other value.

``solve`` and ``RevDEQ`` read their options by ``TABLE``, and the table of docs/api/solver.md is
made of it. The values of one option are checked first, then the options among each other, then what
only a call knows: the dtype of z0, the steps that a function returns, the shapes of y0 and masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from ..adjoints.registry import ADJOINTS
from ..evaluation.adjoint import Adjoint
from ..evaluation.auxiliary import REDUCTIONS
from ..evaluation.rng import RNG
from ..iteration.beta import BetaSchedule
from ..iteration.stopping import StoppingRule
from ..state.floating import FLOAT_STATES
from .values import (
    UNFIT,
    at_least,
    integer,
    is_sequence,
    read_beta,
    read_check,
    read_flag,
    read_frac_bits,
    read_max_steps,
    read_per_sample,
    read_process_group,
    read_save_at,
    read_state,
    read_tol,
    refuse_class,
    shown,
    word_of,
)

AdjointName: TypeAlias = Literal[
    "auto", "reversible", "backprop", "checkpoint", "hooks", "functional"
]
Accumulate: TypeAlias = Literal["float32", "autograd"]


@dataclass(frozen=True)
class Option:
    """One option of ``solve``.

    Attributes:
        kind: what it takes, for the reference.
        default: that of ``solve``.
        reader: from the value given to the one that the solver uses, or ``UNFIT``.
        expected: completes "name: expected ..., got ...".
        remedy: the way out, after that.
        limited: not every adjoint takes another value than the default: ``Adjoint.takes`` says.
        error: the type of the error.
    """

    name: str
    kind: str
    default: Any
    reader: Callable[[Any], Any]
    expected: str
    remedy: str
    limited: bool = False
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
            f"{self.name}: expected {expected or self.expected}, got {shown(value)}; {remedy}"
        )


_CONVERTED = dict.fromkeys(
    ("max_steps", "check_every", "frac_bits", "store_last", "memory_budget", "backward_steps"),
    "int",
) | dict.fromkeys(("tol", "check"), "float")
"""How a tensor becomes the number that the option takes. ``solve`` leaves that to the caller: on a
GPU it waits for the device."""


# ---- the table -----------------------------------------------------------------------------------

_DTYPES = ", ".join(map(str, FLOAT_STATES))


def _choice(name: str, default: str, choices: Sequence[str], remedy: str) -> Option:
    words = ", ".join(map(repr, choices))
    kind = ", ".join(f'"{choice}"' for choice in choices)
    return Option(name, kind, default, word_of(choices), f"one of {words}", remedy)


_adjoint_name = word_of(get_args(AdjointName))


def _read_adjoint(value: Any) -> Any:
    refuse_class("adjoint", value, Adjoint)
    if not isinstance(value, Adjoint):
        return _adjoint_name(value)
    takes, known = value.takes, [option.name for option in LIMITED]
    if isinstance(takes, str) or not {*takes} <= {*known}:
        raise ValueError(
            f"adjoint: expected {type(value).__name__}.takes to be a set of {', '.join(known)}, "
            f"got {takes!r}; leave out what every adjoint takes"
        )
    return value


def _flag(name: str, remedy: str) -> Option:
    return Option(name, "bool", False, read_flag, "True or False", remedy)


_OPTIONS = (
    Option(
        "beta",
        "number in (0, 2) other than 1, sequence of them, function of the step, or tensor",
        0.5,
        read_beta,
        "a number, a sequence with one for each step, a function of the step, or a floating-point "
        "tensor",
        "pass 0.5, a list, or a tensor (.float())",
        error=TypeError,
    ),
    Option(
        "max_steps",
        "integer >= 1, or function that returns one",
        8,
        read_max_steps,
        "an integer of at least 1, or a function that returns one",
        "one step is two evaluations of f",
    ),
    Option(
        "tol",
        "number >= 0, `StoppingRule`, or None",
        None,
        read_tol,
        "a number of at least 0, a StoppingRule, or None",
        "pass a number such as 1e-3; None or 0 runs all steps",
        limited=True,
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
        read_per_sample,
        "True, False, or an integer of at least 1",
        "True judges every index of dimension 0; an integer says how many leading dimensions make "
        "a sample",
        limited=True,
    ),
    Option(
        "process_group",
        "torch.distributed.ProcessGroup, or None",
        None,
        read_process_group,
        "a ProcessGroup of torch.distributed, or None",
        "pass torch.distributed.group.WORLD, or what new_group() or mesh.get_group() returned",
        limited=True,
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
        read_state,
        f"'auto', 'exact' or one of {_DTYPES}",
        "pass a dtype of torch itself, such as state=torch.float32",
    ),
    Option(
        "frac_bits",
        '"auto", or integer from 0 to 30',
        "auto",
        read_frac_bits,
        "'auto' or an integer of 0 to 30",
        "'auto' chooses by the size of z0 and f(z0)",
        limited=True,
    ),
    Option(
        "adjoint",
        ", ".join(f'"{name}"' for name in get_args(AdjointName)) + ", or an `Adjoint`",
        "auto",
        _read_adjoint,
        f"one of {', '.join(map(repr, get_args(AdjointName)))}, or an Adjoint",
        "'auto' chooses by what f is",
    ),
    _choice("rng", "auto", RNG, "'auto' replays the random numbers of f"),
    Option(
        "check",
        "bool, or number > 0",
        True,
        read_check,
        "True, False, or a tolerance above 0",
        "False compares nothing, True takes the default tolerance, math.inf only measures",
    ),
    _choice("accumulate", "float32", get_args(Accumulate), "'float32' loses less"),
    Option(
        "store_last",
        'integer >= 0, or "auto"',
        0,
        at_least(0, words=("auto",)),
        "'auto' or an integer of at least 0",
        "0 keeps no graph",
        limited=True,
    ),
    Option(
        "memory_budget",
        "integer >= 0, or None",
        None,
        at_least(0, words=(None,)),
        "an integer of bytes, or None",
        "pass it with store_last='auto'",
        limited=True,
    ),
    Option(
        "save_at",
        "sequence of integers from 1 to max_steps",
        (),
        read_save_at,
        "integers of 1 to max_steps, in a list or tuple",
        "z after 0 steps is z0, and () saves none",
        limited=True,
    ),
    Option(
        "backward_steps",
        "integer >= 1, or None",
        None,
        at_least(1, words=(None,)),
        "None or an integer of at least 1",
        "None differentiates all steps; for no gradient at all use torch.no_grad()",
        limited=True,
    ),
    _flag("has_aux", "True says that f returns (z, aux)"),
    _choice("aux", "sum", REDUCTIONS, "'stack' keeps them all"),
    _flag("pass_step", "True calls f with step=n"),
)

TABLE = {option.name: option for option in _OPTIONS}
DEFAULTS = {option.name: option.default for option in _OPTIONS}
LIMITED = tuple(option for option in _OPTIONS if option.limited)
"""The options that not every adjoint takes."""


def reference() -> str:
    """The table as markdown, for the documentation."""
    rows = ["| option | type | default | adjoints that take it |", "|---|---|---|---|"]
    for option in _OPTIONS:
        default, text = option.default, isinstance(option.default, str)
        shown = f'"{default}"' if text else str(default)
        rows.append(f"| `{option.name}` | {option.kind} | `{shown}` | {_takers(option)} |")
    return "\n".join(rows)


def _takers(option: Option) -> str:
    takers = [name for name, row in ADJOINTS.items() if _takes(row, option)]
    if len(takers) == len(ADJOINTS):
        return "all"
    if len(takers) + 1 == len(ADJOINTS):
        return "all but " + ", ".join(f'`"{name}"`' for name in ADJOINTS if name not in takers)
    return ", ".join(f'`"{name}"`' for name in takers)


def _takes(adjoint: Adjoint, option: Option) -> bool:
    return not option.limited or option.name in adjoint.takes


# ---- all of them ---------------------------------------------------------------------------------


def read_options(values: dict[str, Any]) -> dict[str, Any]:
    """The options as the solver uses them, in place: each by itself, then among each other."""
    for name, value in values.items():
        option = TABLE[name]
        if value is not option.default:
            values[name] = option.read(value)
    if values["tol"] == 0 and not values["per_sample"] and values["process_group"] is None:
        values["tol"] = None  # no residual is below 0
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
            steps = max(1, len(beta)) if is_sequence(beta) else 1
        BetaSchedule(beta, steps, exact=given["state"] == "exact")


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
    if isinstance(tol, StoppingRule):
        _check_with_rule(given)
    if isinstance(tol, StoppingRule) or tol:
        _check_with_tol(given, tol)
    if given["frac_bits"] != "auto" and isinstance(given["state"], torch.dtype):
        raise bits_of_a_float(given["frac_bits"])
    if given["adjoint"] not in ("auto", "reversible"):
        check_adjoint(adjoint_of(given["adjoint"]), given)


def _check_with_rule(given: dict[str, Any]) -> None:
    for name, value in (("per_sample", False), ("residual_mask", None)):
        if given[name] is not value:
            raise ValueError(
                f"{name}: expected {value} with a StoppingRule as tol, which measures by itself, "
                f"got {shown(given[name])}; leave {name} out, or pass a number as tol"
            )


def _check_with_tol(given: dict[str, Any], tol: float | StoppingRule) -> None:
    if given["save_at"]:
        raise ValueError(
            f"save_at: expected without a tol, got tol={tol}, which may stop before; give tol=None"
        )
    if given["backward_steps"] is not None:
        raise ValueError(
            f"backward_steps: expected without a tol, got tol={tol}: the last steps are known when "
            "they are over; give tol=None, or draw max_steps yourself"
        )


def adjoint_of(value: str | Adjoint) -> Adjoint:
    """The adjoint that a value of the option stands for, "auto" aside."""
    return value if isinstance(value, Adjoint) else ADJOINTS[value]


def check_adjoint(adjoint: Adjoint, given: dict[str, Any]) -> None:
    """ValueError for an option that this adjoint does not take."""
    for option in LIMITED:
        value = given[option.name]
        if not _takes(adjoint, option) and value != option.default:
            takers = [name for name, row in ADJOINTS.items() if _takes(row, option)]
            one = f"adjoint={takers[0]!r}" if len(takers) == 1 else "another one"
            reason = ", which alone can keep graphs" if option.name == "store_last" else ""
            raise ValueError(
                f"{option.name}: expected {option.default} with adjoint={adjoint.name!r}, got "
                f"{shown(value)}; choose {one}{reason}, or leave {option.name} out"
            )


def one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """ValueError for what is none of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def bits_of_a_float(frac_bits: int) -> ValueError:
    """The error for fractional bits of a state that has none."""
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
