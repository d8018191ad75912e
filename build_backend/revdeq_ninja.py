"""Compile libraries with ninja, because setuptools does not detect changed headers."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from setuptools.errors import CompileError

# nvcc's output includes the report of ptxas, which is kept next to the object; the rest is shown.
# Next to an object of C++ are its warnings, and in .made what it was made of: compiler and flags,
# the compiler's version, and the hashes of all files that it read. The tests of the kernels take an
# object for which all of this is as it was.
RULES = r"""
rule cxx
  command = rm -f $out.made; $
    $compiler $flags -MD -MF $out.d -c $in -o $out 2> $out.log; status=$$?; cat $out.log >&2; $
    [ $$status -ne 0 ] || { printf '%s\n' $compiler $flags; $compiler --version; $
    sed '1s/^[^:]*://; s/\\$$//' $out.d | xargs sha256sum; } > $out.made; exit $$status
  description = compile $in
  depfile = $out.d
  deps = gcc
rule nvcc
  command = $compiler $flags -MD -MF $out.d -c $in -o $out > $out.log 2>&1; status=$$?; $
    grep -vE '^ptxas info|bytes stack frame' $out.log; exit $$status
  description = compile $in
  depfile = $out.d
  deps = gcc
rule link
  command = $compiler $in -o $out $flags
  description = link $out
"""


@dataclass(frozen=True)
class Library:
    """A shared library: its file name, the rule and compiler that build it, and their flags."""

    file: str
    rule: str
    compiler: str
    sources: dict[Path, list[str]]  # each with its compile flags
    link_flags: list[str]

    def objects(self) -> list[str]:
        """The object files, in the order of the sources."""
        return [f"{source.parent.name}.{source.name}.o" for source in self.sources]

    def statements(self) -> Iterator[str]:
        """The statements of build.ninja that build this library."""
        for target, (source, flags) in zip(self.objects(), self.sources.items(), strict=True):
            path = re.sub(r"([$ :])", r"$\1", str(source))
            yield from self._statement(f"{target}: {self.rule} {path}", flags)
        yield from self._statement(f"{self.file}: link {' '.join(self.objects())}", self.link_flags)

    def _statement(self, edge: str, flags: list[str]) -> Iterator[str]:
        yield f"build {edge}"
        yield "  compiler = " + self.compiler.replace("$", "$$")
        yield "  flags = " + shlex.join(flags).replace("$", "$$")


def build(folder: Path, libraries: list[Library]) -> None:
    """Update the libraries in `folder`, and ptxas.log, the report on their kernels."""
    folder.mkdir(parents=True, exist_ok=True)
    statements = [line for library in libraries for line in library.statements()]
    (folder / "build.ninja").write_text("\n".join([RULES, *statements, ""]))
    jobs = os.environ.get("MAX_JOBS")
    command = [ninja(), "-C", str(folder), *(["-j", jobs] if jobs else [])]
    files = sum(len(library.sources) for library in libraries)
    tell(f"revdeq-kernels: compiling {files} files (a CPU build: about a minute on two free cores)")
    if subprocess.run(command, check=False).returncode:
        raise CompileError(
            f"{' or '.join(library.compiler for library in libraries)} failed: see the messages "
            f"above, and the commands in {folder / 'build.ninja'}. If the compiler was killed "
            "without a message, memory ran out: set MAX_JOBS=1. The CUDA code needs CUDA 12.4 "
            "or newer (CUDA_HOME selects it; REVDEQ_BUILD_CUDA=0 skips it)."
        )
    cuda = [library for library in libraries if library.rule == "nvcc"]
    logs = [folder / f"{name}.log" for library in cuda for name in library.objects()]
    (folder / "ptxas.log").write_text("".join(log.read_text() for log in logs))


def tell(line: str) -> None:
    """Print a line, also on the terminal where pip keeps a build's output to itself."""
    print(line, flush=True)
    if not sys.stdout.isatty():
        with contextlib.suppress(OSError), Path("/dev/tty").open("w") as terminal:
            terminal.write(f"\n{line}\n")


def ninja() -> str:
    """The path of ninja: next to the interpreter (for a venv that is not activated), or on PATH."""
    folders = [sysconfig.get_path("scripts"), os.environ.get("PATH", "")]
    path = shutil.which("ninja", path=os.pathsep.join(folders))
    if path is None:
        raise CompileError("the build needs ninja, which is not installed: run `pip install ninja`")
    return path
