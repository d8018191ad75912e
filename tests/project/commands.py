"""Check shell commands in documents: that the program exists and has these options."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import runpy
import shlex
import sys
import warnings
from functools import cache

import pytest

from tests import ROOT

ELSEWHERE = {"pip", "venv", "pytest", "ruff", "pyright", "mkdocs", "http"}
"""External packages, whose options are not checked."""


def check(line: str, *, known: bool) -> None:
    """Fail if the command is invalid or, with `known`, not recognized."""
    words = shlex.split(line.removeprefix("$ "), comments=True) if _is_shell(line) else []
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        del words[0]
    match words:
        case []:
            assert not known or not line.strip() or line.strip().startswith("#"), line
        case ["make", *targets]:
            _check_targets(targets)
        case ["pip", "install", *what]:
            _check_extras(what)
        case ["python", "-m", module, *arguments]:
            _check_module(module, arguments)
        case ["sudo", "apt", "install", *packages]:  # what `make` asks for
            assert {"make", "g++", "python3-venv", "python3-dev"} <= set(packages), line
        case ["torchrun", *arguments]:  # python's own options end at the script
            script = next(i for i, word in enumerate(arguments) if word.endswith(".py"))
            _check_script(arguments[script], arguments[script + 1 :])
        case ["python", script, *arguments]:
            _check_script(script, arguments)
        case [script, *arguments]:
            text = (ROOT / script).read_text()
            assert (ROOT / script).stat().st_mode & 0o111, f"{script} cannot be executed"
            if program := re.search(r'-m (\S+) "\$@"', text):  # receives its arguments
                _check_module(program[1], arguments)
                return
            for option in _options(arguments):
                assert option in text, line


def _is_shell(line: str) -> bool:
    program = r"(make|pip|python|torchrun|sudo apt|\S+\.sh|\.ci/run)"
    return re.match(rf"(\$ )?([A-Z_]+=\S* )*{program}( |$)", line) is not None


def _check_targets(targets: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        variable = re.fullmatch(r"([A-Z]+)=.*", target, re.DOTALL)
        form = rf"\$\({variable[1]}\)" if variable else rf"^{re.escape(target)}:"
        assert re.search(form, makefile, re.MULTILINE), f"make {target}"


def _check_extras(what: list[str]) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    extras = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    for extra in re.findall(r"\w+", " ".join(re.findall(r"\[([\w,-]+)\]", " ".join(what)))):
        assert re.search(rf"^{extra} = \[", extras, re.MULTILINE), extra


def _check_module(module: str, arguments: list[str]) -> None:
    assert importlib.util.find_spec(module.partition(".")[0]), module
    if module.partition(".")[0] in ELSEWHERE:
        return
    assert importlib.util.find_spec(module), module
    _check_options(module, arguments)


def _check_script(script: str, arguments: list[str]) -> None:
    assert (ROOT / script).is_file(), script
    _check_options(script, arguments)


def _check_options(program: str, arguments: list[str]) -> None:
    if options := _options(arguments):
        first = arguments[0]
        text = _help(program, "" if first.startswith("-") else first)
        for option in options:
            assert re.search(rf"{option}\b", text), f"{program} {option}"


def _options(arguments: list[str]) -> list[str]:
    return [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]


@cache
def _help(program: str, first: str) -> str:
    """The help of a module or script, run in this process, where torch is already imported.

    Also the help of the subcommand, if the first argument is one.
    """
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the module may have been imported before
        patch.setattr(sys, "argv", [program, *filter(None, [first]), "--help"])
        patch.setenv("COLUMNS", "200")
        run, name = runpy.run_module, program
        if program.endswith(".py"):
            run, name = runpy.run_path, str(ROOT / program)
            patch.syspath_prepend(str((ROOT / program).parent))
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            run(name, run_name="__main__")
    assert "--help" in out.getvalue(), program
    return out.getvalue()
