"""The table of the options of ``solve``, each with the first sentence of its docstring."""

from __future__ import annotations

import inspect
import re

from torch_revdeq import solve
from torch_revdeq.options.table import reference

_ARGUMENTS = re.compile(r"^Args:\n(.*?)^\S", re.MULTILINE | re.DOTALL)
_ARGUMENT = re.compile(r"^    (\w+): (.*?)(?=^    \w|\Z)", re.MULTILINE | re.DOTALL)
_SENTENCE_END = re.compile(r"\.(?: |$)|: (?=\")")


def meanings() -> dict[str, str]:
    """What each argument of ``solve`` means, in one sentence."""
    arguments = _ARGUMENTS.search(inspect.getdoc(solve) or "")
    entries = _ARGUMENT.findall(arguments[1]) if arguments else []
    return {name: _SENTENCE_END.split(" ".join(text.split()), 1)[0] for name, text in entries}


def table() -> str:
    """The solver's own table, with a column of meanings; ValueError for an option without one."""
    known = {"option": "meaning", **meanings()}
    head, rule, *rows = reference().splitlines()
    lines = []
    for row in (head, *rows):
        name, rest = row.removeprefix("| ").split(" | ", 1)
        meaning = known.get(name.strip("`"))
        if meaning is None:
            raise ValueError(f"solve: expected {name} under Args in its docstring, got no entry")
        lines.append(f"| {name} | {meaning} | {rest}")
    return "\n".join((lines[0], f"{rule}---|", *lines[1:]))
