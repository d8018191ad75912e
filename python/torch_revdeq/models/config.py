"""The base class of the models' configs: solver options, checks, and JSON conversion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar, get_args

from ..options.reading import check_given
from ..options.table import TABLE, AdjointName, one_of
from ..state.formats import State

C = TypeVar("C", bound="ModelConfig")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The options of ``solve`` that a config names. Models take the others as keywords.

    Attributes:
        beta: in (0, 2) and not 1.
        tol: the relative residual at which a solve stops; None: run all steps.
        state: "auto", "exact", or a floating-point dtype, kept by its name, as in "float32".
        adjoint: "auto", "reversible", "backprop", "checkpoint", "hooks" or "functional".
    """

    beta: float = 0.5
    tol: float | None = None
    state: State = "auto"
    adjoint: str = "auto"

    def __post_init__(self) -> None:
        """Check the fields, before a model is built."""
        number("beta", self.beta, 0, 2)
        if self.beta == 1:
            raise ValueError("beta: expected a number other than 1, which cannot be inverted")
        if self.tol is not None:
            number("tol", self.tol, 0, math.inf, least=True)
        state = TABLE["state"].read(self.state)
        object.__setattr__(self, "state", str(state).removeprefix("torch."))  # as JSON holds it
        one_of("adjoint", self.adjoint, get_args(AdjointName))
        check_given(self.solver_options())

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; the inverse of ``from_dict``."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
        """The config with these fields; ValueError for an unknown key."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(
                    f"{key}: expected a field of {cls.__name__}, one of {', '.join(known)}, got "
                    f"{key!r}; was it written by another version?"
                )
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**given)

    def solver_options(self) -> dict[str, Any]:
        """The options for ``RevDEQ``, except the number of steps."""
        options = {"beta": self.beta, "state": self.state, "adjoint": self.adjoint}
        return options if self.tol is None else {**options, "tol": self.tol}


def whole(name: str, value: Any, least: int = 1) -> None:
    """ValueError unless it is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")


def number(name: str, value: Any, low: float, high: float, *, least: bool = False) -> None:
    """ValueError unless it is between `low` and `high`, or is `low` itself with `least`."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not real or not (low < value < high or (least and value == low)):
        end = "[" if least else "("
        raise ValueError(f"{name}: expected a number in {end}{low}, {high}), got {value!r}")


def flag(name: str, value: Any) -> None:
    """ValueError unless it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected True or False, got {value!r}")
