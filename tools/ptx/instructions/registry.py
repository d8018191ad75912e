"""The instructions that the executor supports: one row each, with the allowed modifiers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from tools.ptx.errors import Missing
from tools.ptx.kernel import Instruction

Step = Callable[[], None]
"""A compiled instruction, which runs for the threads of ``machine.mask``."""

Compiler = TypeVar("Compiler", bound=Callable[..., Any])

UNITS = ("", "warp", "warpgroup", "block")


@dataclass(frozen=True)
class Row:
    """How to compile an instruction: `compile` receives machine, instruction, and form groups."""

    compile: Callable[..., Any]
    form: re.Pattern[str] | None
    together: str
    waits: bool


ROWS: dict[str, list[Row]] = {}


def instruction(
    *names: str, form: str | None = None, together: str = "", waits: bool = False
) -> Callable[[Compiler], Compiler]:
    r"""Register a function ``(machine, instruction, **groups) -> step`` under `names`.

    Args:
        names: The first words of the instructions, such as "add".
        form: A regular expression for everything that may follow the name, such as
            ``r"(\.rn)?(?P<ftz>\.ftz)?\.(?P<kind>f32)"``; its named groups are passed to the
            function. A name may be registered with several forms. Without a form, the function
            itself raises for modifiers that it does not support.
        together: "warp", "warpgroup" or "block": the threads that must execute the instruction
            together.
        waits: The instruction suspends threads. The function returns (ready, step): a function that
            returns which threads can continue, and the step that they then execute.
    """
    if together not in UNITS:
        raise ValueError(f"together: expected one of {UNITS}, got {together!r}")

    def register(function: Compiler) -> Compiler:
        row = Row(function, None if form is None else re.compile(form), together, waits)
        for name in names:
            ROWS.setdefault(name, []).append(row)
        return function

    return register


def find(instruction: Instruction) -> tuple[Row, dict[str, Any]]:
    """The row of an instruction and the groups of its form; Missing if there is none."""
    name, *words = instruction.op
    if (found := _find(name, "".join(f".{word}" for word in words))) is None:
        raise Missing(instruction.text)
    return found


@lru_cache(maxsize=1024)
def _find(name: str, modifiers: str) -> tuple[Row, dict[str, Any]] | None:
    for row in ROWS.get(name, ()):
        if row.form is None:
            return row, {}
        if found := row.form.fullmatch(modifiers):
            return row, found.groupdict()
    return None
