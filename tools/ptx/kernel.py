"""Parse the text of a kernel: parameters, shared memory, registers, instructions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from tools.ptx.errors import Missing
from tools.ptx.types import size_of

COMMENTS = re.compile(r"//[^\n]*|/\*.*?\*/|^\s*\.loc\b[^\n]*", re.DOTALL | re.MULTILINE)
ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*(?:\(([^)]*)\))?([^{;]*)\{")
SHARED = re.compile(r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)((?:\[\d*\])*)\s*;")
TOKEN = re.compile(r"\s*(?:([{}])|([\w$]+):(?!:)|([^;]*);)")
WORD = re.compile(r"[%$\w@]+")
# Triton 3.8 declares a stack that nothing uses; an access to local memory raises Missing.
IGNORED = (".pragma", ".shared", ".local")


@dataclass(frozen=True)
class Instruction:
    """One instruction; names declared in an inner scope are made unique with the scope's number.

    `op` is its name and modifiers ("ld", "global", "v4", "b32"), `args` its operands. It runs for
    threads whose predicate `guard` is true, or false if `negated`.
    """

    guard: str | None
    negated: bool
    op: list[str]
    args: list[str]
    text: str


@dataclass
class Scope:
    """A scope in braces: the registers and labels that are declared in it."""

    number: int
    outer: Scope | None
    names: set[str] = field(default_factory=set)

    def unique(self, name: str) -> str:
        """The unique name within the kernel."""
        return f"{name}@{self.number}" if self.number else name

    def resolve(self, name: str) -> str:
        """The unique name to which `name` resolves in this scope."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.unique(name)
            scope = scope.outer
        return name


class Kernel:
    """An entry of a PTX module.

    Attributes:
        name: The entry's name.
        parameters: Name -> (offset, size) in the parameter space of `parameter_bytes` bytes.
        threads: Threads per block, if given by ``.reqntid``.
        shared_bytes: Static shared memory; dynamic shared memory follows it.
        shared_names: Name -> offset in shared memory.
        code: The instructions.
        labels: Name -> position in `code`.
        registers: Name -> type, such as "b32" or "pred".
        machine: The result of compiling the kernel in ``machine.execute``.
    """

    def __init__(self, text: str, entry: str | None = None) -> None:
        """Parse `entry` of the module `text`, or its first entry; ValueError if there is none."""
        found = next((m for m in ENTRY.finditer(text) if entry in (None, m[1])), None)
        if found is None:
            raise ValueError(f"expected PTX with an entry {entry or ''}, got none")
        self.name = found[1]
        self.parameters: dict[str, tuple[int, int]] = {}
        self.parameter_bytes = self._read_parameters(COMMENTS.sub("", found[2] or ""))
        threads = re.search(r"\.reqntid\s+(\d+)((?:\s*,\s*\d+)*)", found[3])
        if threads and set(re.findall(r"\d+", threads[2])) - {"1"}:
            raise Missing(f"blocks of more than one dimension: {threads[0]}")
        self.threads = int(threads[1]) if threads else None
        if clusters := re.search(r"\.\w*cluster\w*", found[3]):
            raise Missing(f"clusters of blocks: {clusters[0]}")
        body = COMMENTS.sub("", _body(text, found.end()))
        module = "".join(re.findall(r"^\s*\.extern\s+\.shared[^;]*;", text, re.MULTILINE))
        self.shared_names: dict[str, int] = {}
        self.shared_bytes = self._read_shared(body, module)
        self.registers: dict[str, str] = {}
        self.labels: dict[str, int] = {}
        self.code: list[Instruction] = []
        self.machine: Any = None
        self._uses: Counter[str] | None = None
        self._read_code(body)

    def uses(self, register: str) -> int:
        """How often a register occurs in the code."""
        if self._uses is None:
            words = (
                WORD.findall(arg) for inst in self.code for arg in (*inst.args, inst.guard or "")
            )
            self._uses = Counter(chain.from_iterable(words))
        return self._uses[register]

    def _read_parameters(self, text: str) -> int:
        offset = 0
        for declaration in split(text):
            found = re.fullmatch(
                r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr[\s.\w]*?)?([\w$]+)(?:\[(\d+)\])?",
                declaration,
            )
            if found is None:
                raise Missing(f"the parameter {declaration}")
            unit = size_of(found[2])
            align, size = int(found[1] or unit), unit * int(found[4] or 1)
            offset = -(-offset // align) * align
            self.parameters[found[3]] = (offset, size)
            offset += size
        return offset

    def _read_shared(self, body: str, module: str) -> int:
        """Arrays without a size are dynamic: they start where all others end."""
        size, dynamic = 0, []
        for align, kind, name, dimensions in SHARED.findall(body + module):
            unit = size_of(kind)
            size = -(-size // int(align or unit)) * int(align or unit)
            self.shared_names[name] = size
            if dimensions == "[]":
                dynamic.append((name, int(align or unit)))
                continue
            for length in re.findall(r"\d+", dimensions):
                unit *= int(length)
            size += unit
        for name, align in dynamic:
            size = -(-size // align) * align
            self.shared_names[name] = size
        return size

    def _read_code(self, body: str) -> None:
        statements: list[tuple[Scope, str]] = []
        for scope, label, statement in _statements(body):
            if label:
                scope.names.add(label)
                self.labels[scope.unique(label)] = len(statements)
            elif statement.startswith(".reg"):
                kind, names = statement.removeprefix(".reg").split(None, 1)
                for name in _declared(names):
                    scope.names.add(name)
                    self.registers[scope.unique(name)] = kind.removeprefix(".")
            elif statement.startswith("."):
                if not statement.startswith(IGNORED):
                    raise Missing(statement)
            else:
                statements.append((scope, statement))
        self.code = [_instruction(scope, statement) for scope, statement in statements]


def split(text: str) -> list[str]:
    """`text` split at its commas, except within brackets."""
    if "{" not in text and "(" not in text:
        return [part.strip() for part in text.split(",")] if text.strip() else []
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    return [*parts, text[start:].strip()]


def _body(text: str, start: int) -> str:
    """The text between the brace that ends at `start` and its matching brace."""
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[start : brace.start()]
    raise ValueError("expected PTX with balanced braces")


def _statements(body: str) -> Iterator[tuple[Scope, str, str]]:
    """Each label and statement, with its scope."""
    scope, count, at = Scope(0, None), 0, 0
    while found := TOKEN.match(body, at):
        at = found.end()
        brace, label, statement = found.groups()
        if brace == "{":
            count += 1
            scope = Scope(count, scope)
        elif brace == "}":
            assert scope.outer is not None
            scope = scope.outer
        elif label:
            yield scope, label, ""
        elif statement:
            yield scope, "", statement.strip()
    if rest := body[at:].strip():
        raise Missing(rest)


def _declared(names: str) -> Iterator[str]:
    """The registers of a declaration: "%p<3>" are %p0, %p1 and %p2."""
    for name in split(names):
        base, _, count = name.partition("<")
        yield from (f"{base}{k}" for k in range(int(count.rstrip(">")))) if count else (name,)


def _instruction(scope: Scope, statement: str) -> Instruction:
    guard, negated, text = None, False, " ".join(statement.split())
    code = text
    if code.startswith("@"):
        guard, code = code[1:].split(None, 1)
        negated, guard = guard.startswith("!"), scope.resolve(guard.lstrip("!"))
    op, _, operands = code.partition(" ")
    if scope.number:
        operands = WORD.sub(lambda word: scope.resolve(word[0]), operands)
    return Instruction(guard, negated, op.split("."), split(operands), text)
