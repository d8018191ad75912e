"""The options of ``solve`` in one table: the values each accepts, and the error for others.

``solve`` and ``RevDEQ`` read their options with ``TABLE``, and the table in docs/api/solver.md is
generated from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor

from ..evaluation.adjoint import ADJOINTS, Adjoint
from ..evaluation.auxiliary import REDUCTIONS
from ..evaluation.rng import RNG
from ..state.formats import FORMATS
from .other_names import OF_LIMIT
from .values import (
    UNFIT,
    at_least,
    integer,
    read_beta,
    read_check,
    read_compile,
    read_flag,
    read_frac_bits,
    read_max_steps,
    read_on_step,
    read_per_sample,
    read_process_group,
    read_residual_mask,
    read_save_at,
    read_state,
    read_tol,
    refuse_class,
    shown,
    word_of,
)

# The rows of adjoints/registry.py; a Literal cannot be computed.
AdjointName: TypeAlias = Literal[
    "auto", "reversible", "backprop", "checkpoint", "hooks", "functional"
]
Accumulate: TypeAlias = Literal["float32", "autograd"]


@dataclass(frozen=True, eq=False, repr=False)
class Option:
    """One option of ``solve``.

    Attributes:
        kind: the values it accepts, for the reference.
        default: the default in ``solve``.
        reader: converts the given value to the one that the solver uses, or to ``UNFIT``.
        expected: completes "name: expected ..., got ...".
        remedy: the way out, appended after that.
        limited: some adjoints support only the default: see ``Adjoint.takes``.
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
        """The value as the solver uses it; an error that names the option for an invalid one."""
        result = self.reader(value)
        if result is UNFIT:
            raise self.refusal(value)
        return result

    def refusal(self, value: Any, expected: str = "") -> Exception:
        """The error for an invalid value."""
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
"""How to convert a tensor to the number that the option takes. ``solve`` leaves that to the caller,
because on a GPU it waits for the device."""


# ---- the table -----------------------------------------------------------------------------------

_WORDS = ["auto", *(name for name in FORMATS if isinstance(name, str))]
_DTYPES = ", ".join(str(name) for name in FORMATS if not isinstance(name, str))


def _choice(name: str, default: str, choices: Sequence[str], remedy: str) -> Option:
    words = ", ".join(map(repr, choices))
    kind = ", ".join(f'"{choice}"' for choice in choices)
    return Option(name, kind, default, word_of(choices), f"one of {words}", remedy)


_adjoint_name = word_of(get_args(AdjointName))


def _read_adjoint(value: Any) -> Any:
    refuse_class("adjoint", value, Adjoint)
    if isinstance(value, str) and value in OF_LIMIT:
        raise ValueError(
            f"adjoint: expected one of {', '.join(map(repr, get_args(AdjointName)))}, or an "
            f"Adjoint, got {value!r}; call torch_revdeq.fixed_point(f, z0, adjoint={value!r}) for "
            "it, or leave adjoint out, which differentiates the steps of the solve"
        )
    if not isinstance(value, Adjoint):
        return _adjoint_name(value)
    takes, known = value.takes, [option.name for option in LIMITED]
    if isinstance(takes, str) or not {*takes} <= {*known}:
        raise ValueError(
            f"adjoint: expected {type(value).__name__}.takes to be a set of {', '.join(known)}, "
            f"got {takes!r}; leave out options that every adjoint supports"
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
        "True makes every index of dimension 0 a sample; an integer is the number of leading "
        "dimensions that index samples",
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
        read_residual_mask,
        "a bool tensor, or a pytree of them like z0",
        "True marks the positions that count in the residual",
    ),
    Option(
        "state",
        f"""{", ".join(f'"{word}"' for word in _WORDS)}, or a floating-point dtype or its name""",
        "auto",
        read_state,
        f"{', '.join(map(repr, _WORDS))} or one of {_DTYPES}",
        "pass such a dtype or its name, as in state=torch.float32 or state='float32'",
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
        "'auto' chooses one that supports f",
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
    _choice("accumulate", "float32", get_args(Accumulate), "'float32' is more accurate"),
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
    _flag("has_aux", "True means that f returns (z, aux)"),
    _choice("aux", "sum", REDUCTIONS, "'stack' keeps them all"),
    _flag("pass_step", "True calls f with step=n"),
    Option(
        "compile",
        'bool, or "auto"',
        False,
        read_compile,
        "True, False or 'auto'",
        "'auto' compiles f if possible; otherwise stats.route says why not",
    ),
    _flag("trace", "True keeps the residual of every step"),
    Option(
        "on_step",
        "function of (step, residual, z), or None",
        None,
        read_on_step,
        "a function, or None",
        "it is called as on_step(step, residual, z) after every step",
    ),
)

TABLE = {option.name: option for option in _OPTIONS}
DEFAULTS = {option.name: option.default for option in _OPTIONS}
LIMITED = tuple(option for option in _OPTIONS if option.limited)
"""The options that not every adjoint supports."""


def reference() -> str:
    """The table as markdown, for the documentation."""
    rows = ["| option | type | default | adjoints that take it |", "|---|---|---|---|"]
    for option in _OPTIONS:
        default, text = option.default, isinstance(option.default, str)
        shown = f'"{default}"' if text else str(default)
        rows.append(f"| `{option.name}` | {option.kind} | `{shown}` | {_takers(option)} |")
    return "\n".join(rows)


def _takers(option: Option) -> str:
    takers = [name for name, row in ADJOINTS.items() if takes(row, option)]
    if len(takers) == len(ADJOINTS):
        return "all"
    if len(takers) + 1 == len(ADJOINTS):
        return "all but " + ", ".join(f'`"{name}"`' for name in ADJOINTS if name not in takers)
    return ", ".join(f'`"{name}"`' for name in takers)


def takes(adjoint: Adjoint, option: Option) -> bool:
    """Whether the adjoint supports values of the option other than the default."""
    return not option.limited or option.name in adjoint.takes


def one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """ValueError unless it is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
