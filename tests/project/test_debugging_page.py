"""docs/debugging.md quotes exactly the messages that users can meet."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.project.documents import ROOT, documents

SOLVER, OPS = ROOT / "python/torch_revdeq", ROOT / "revdeq_kernels"
OF_A_RUN = ("RuntimeError", "CaptureError", "RangeError", "ReconstructionError")
HOLE = "…"
"""What stands for a value in a message."""


def text_of(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return "".join(map(text_of, node.values)) if isinstance(node, ast.JoinedStr) else HOLE


@cache
def messages(folder: Path) -> list[tuple[str, str]]:
    """Every error that is made in the modules of a folder: its type, and what it says."""
    paths = (p for p in folder.rglob("*.py") if "models" not in p.parts)
    nodes = (n for path in paths for n in ast.walk(ast.parse(path.read_text())))
    calls = [node for node in nodes if isinstance(node, ast.Call) and node.args]
    found = [(ast.unparse(call.func), text_of(call.args[0])) for call in calls]
    return [(kind, text) for kind, text in found if "Error" in kind and text != HOLE]


def tables() -> str:
    """The page from its first table on."""
    return documents()["docs/debugging.md"].text.partition("## Errors while a solve runs")[2]


def rows() -> list[tuple[list[str], str]]:
    """The types and the beginning of a message, of each row that has both."""
    found = re.findall(r"^\| ((?:`\w+Error`(?:, )?)+) \| `([^`]+)` \|", tables(), re.MULTILINE)
    return [(re.findall(r"\w+", kinds), text) for kinds, text in found]


@pytest.mark.parametrize(("kinds", "quoted"), rows(), ids=[text for _, text in rows()])
def test_the_solver_says_so(kinds: list[str], quoted: str) -> None:
    said = [kind for kind, text in messages(SOLVER) if text.startswith(quoted)]
    assert said, f"docs/debugging.md quotes what no error begins with: {quoted}"
    assert all(any(name in kind for name in kinds) for kind in said)


def test_no_error_of_a_run_is_left_out() -> None:
    made = [text for kind, text in messages(SOLVER) if kind in OF_A_RUN]
    assert len(made) > 20
    assert not [text for text in made if not any(text.startswith(quoted) for _, quoted in rows())]


def test_no_argument_is_left_out() -> None:
    made = [text for kind, text in messages(SOLVER) if kind in ("ValueError", "TypeError")]
    names = {found[1] for text in made if (found := re.match(r"(\w+): ", text))}
    assert len(names) > 20
    assert not {name for name in names if f"`{name}`" not in tables() and name != "f"}


def test_the_ops_say_so() -> None:
    part = tables().partition("## Errors of the ops and backends")[2]
    quotes = re.findall(r"^\| `([^`]+)` \|", part, re.MULTILINE)
    assert quotes
    for quoted in quotes:
        assert any(quoted in text for _, text in messages(OPS)), quoted
