"""Every script in examples/ says in one line which extra has the package that it lacks."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

from tests import ROOT

EXAMPLES = ROOT / "examples"
SCRIPTS = [*sorted(EXAMPLES.glob("*.py")), *sorted(EXAMPLES.glob("trainers/*.py"))]
ALWAYS = {*sys.stdlib_module_names, "torch", "torch_revdeq", "revdeq_kernels", "numpy"}
"""Not in an extra; numpy comes with scikit-learn, and cannot be imported twice."""

DISTRIBUTIONS = {"sklearn": "scikit-learn"}
"""Of packages that are imported under another name."""


def imported(paths: Sequence[Path]) -> set[str]:
    """The packages that these files import when they are run, in any depth of blocks."""
    names: set[str] = set()
    for path in paths:
        functions = (ast.FunctionDef, ast.ClassDef)
        statements = [n for n in ast.parse(path.read_text()).body if not isinstance(n, functions)]
        for node in [node for statement in statements for node in ast.walk(statement)]:
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(str(node.module).partition(".")[0])
    return names - ALWAYS


OF_TRAINING = imported([*EXAMPLES.glob("training/**/*.py")])


def needed(script: Path) -> set[str]:
    names = imported([script])
    return names - {"training"} | (OF_TRAINING if "training" in names else set())


CASES = [(script, name) for script in SCRIPTS for name in sorted(needed(script))]


class _Empty(ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()


class _Absent(MetaPathFinder, Loader):
    """One package is not installed, and others are empty: what they hold is not reached."""

    def __init__(self, absent: str, empty: set[str]) -> None:
        self.absent, self.empty = absent, empty

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        package = name.partition(".")[0]
        if package == self.absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return ModuleSpec(name, self, is_package=True) if package in self.empty else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@pytest.fixture
def modules() -> Iterator[dict[str, ModuleType]]:
    """`sys.modules` without the packages of the examples, which are back afterwards."""
    packages = {"training", *(name for _, name in CASES)}

    def taken() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] in packages]
        return {name: sys.modules.pop(name) for name in names}

    before = taken()
    yield sys.modules
    taken()
    sys.modules.update(before)


def test_the_scripts_are_found() -> None:
    """And what they import."""
    assert {script.stem for script, _ in CASES} == {script.stem for script in SCRIPTS}
    names = {name for _, name in CASES}
    assert {"accelerate", "lightning", "matplotlib", "rich", "safetensors", "tyro"} <= names


@pytest.mark.parametrize(
    ("script", "name"), CASES, ids=[f"{script.stem}-{name}" for script, name in CASES]
)
def test_a_missing_package_is_named_with_its_extra(
    script: Path, name: str, modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    finder = _Absent(name, needed(script) - {name})
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    monkeypatch.setattr(sys, "argv", [str(script)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    said = re.fullmatch(
        rf"{script.stem}: No module named '{name}[.\w]*'; "
        r"pip install '\.\[([\w,]+)\]' in the clone",
        str(ended.value),
    )
    assert said is not None, ended.value
    assert DISTRIBUTIONS.get(name, name) in packages_of(said[1].split(","))


def packages_of(extras: Sequence[str]) -> set[str]:
    """In pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found: set[str] = set()
    for extra in extras:
        (packages,) = re.findall(rf"^{extra} = \[([^\]]+)\]", text, re.MULTILINE)
        found |= {*re.findall(r'"([\w-]+)"', packages)}
    return found
