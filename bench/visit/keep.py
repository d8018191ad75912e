"""`python -m bench.visit keep FOLDER`: what a visit brought home goes where it belongs.

The figures become `bench/results/<gpu>/`, and the ops whose kernels did all that was asked of them
enter `revdeq_kernels/core/validated.py`. What has been validated is taken out again where a later
visit finds it wrong.
"""

from __future__ import annotations

import re
import shutil
import tarfile
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.visit import report
from bench.visit.runner import FAILED, TIMED_OUT
from bench.visit.smoke import SAME
from bench.visit.steps import CALLS, ROOT

RESULTS = ROOT / "bench" / "results"
TABLE = ROOT / "revdeq_kernels" / "core" / "validated.py"
BACKENDS = ("cuda", "triton")
KEPT = (".jsonl", ".png")
"""The endings of figures that are stored; traces and pages are not."""

HEAD = '''"""The GPU kernels tested on hardware; `python -m bench.visit keep` writes this table."""

from __future__ import annotations

VALIDATED: dict[tuple[str, str], frozenset[str]] = {'''
TAIL = '''}
"""(backend, architecture such as "sm_90") -> names of the ops whose `gpu` tests passed there."""
'''

Key = tuple[str, str]
Validated = Mapping[Key, frozenset[str]]
Line = Mapping[str, Any]


@dataclass
class Found:
    """What is known of one op on one backend."""

    smoke: dict[int, str] = field(default_factory=dict)
    """What each part said."""
    parts: int = 1
    memory: str = ""
    """What compute-sanitizer has against it."""
    tests: dict[str, str] = field(default_factory=dict)
    """The outcome of every test that was collected, "not run" where there is none."""

    def against(self) -> str:
        """Why the op is not validated; nothing where it is."""
        wrong = [said for said in self.smoke.values() if said != SAME]
        failed = [test for test, outcome in self.tests.items() if outcome == "failed"]
        if wrong or failed:
            return (wrong or [f"{failed[0]} failed"])[0]
        if self.memory:
            return self.memory
        if len(self.smoke) < self.parts:
            return f"only {len(self.smoke)} of {self.parts} parts were compared"
        missing = sum(outcome == "not run" for outcome in self.tests.values())
        if missing:
            return f"{missing} of {len(self.tests)} tests were not run"
        return "" if "passed" in self.tests.values() else "no test passed"

    @property
    def is_wrong(self) -> bool:
        """Whether something was found to be wrong, not only left out."""
        return "failed" in self.tests.values() or any(s != SAME for s in self.smoke.values())


def main(folders: Sequence[Path]) -> int:
    """Store what the folders hold, and say what was done; 1 where there is nothing."""
    with tempfile.TemporaryDirectory() as work:
        calls = unpacked(folders, Path(work))
        if not calls:
            names = ", ".join(report.files_of(call)[2] for call in CALLS)
            print(f"keep: expected {names} in {', '.join(map(str, folders))}, got neither")
            return 1
        of_calls = [
            [line for file in call.glob("*.jsonl") for line in read(file)] for call in calls
        ]
        # Of a call that does not say where it ran, nobody knows what its tests are of.
        compared = [lines for lines in of_calls if architecture_of(lines)]
        architectures = sorted({str(architecture_of(lines)) for lines in compared})
        if len(architectures) > 1:
            print(f"keep: expected calls on one architecture, got {', '.join(architectures)}")
            return 1
        for call in calls:
            store(call / "measured")
    if not architectures:
        print("no GPU was compared with the reference: nothing is validated")
        return 0
    found, architecture = by_op(line for lines in compared for line in lines), architectures[0]
    TABLE.write_text(table_of(merged(existing(), found, architecture)), encoding="utf-8")
    for (backend, op), each in sorted(found.items()):
        print(f"{backend:8}{op:34}{each.against() or 'validated'}"[:200])
    print(f"written: {TABLE}")
    return 0


def read(path: Path) -> list[Line]:
    """The lines of a file."""
    return list(report.read_lines(path))


def unpacked(folders: Sequence[Path], work: Path) -> list[Path]:
    """The archives of the calls, each in a folder of its own."""
    found = []
    for k, folder in enumerate(folders):
        for call in CALLS:
            archive = folder / report.files_of(call)[2]
            if archive.exists():
                folder_of_call = work / f"{k}-{call}"
                try:
                    unpack(archive, folder_of_call)
                except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
                    print(f"{archive}: cannot be read, {error}; nothing of it is kept")
                    continue
                found.append(folder_of_call)
    return found


def unpack(archive: Path, folder: Path) -> None:
    """The files of an archive, nothing outside of the folder."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path, file = folder / member.name, tar.extractfile(member)
            if file is not None and path.resolve().is_relative_to(folder.resolve()):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.read())


# ---- figures ---------------------------------------------------------------------------------


def store(measured: Path) -> None:
    """The lines and figures, in the folder of their GPU."""
    files = [path for path in sorted(measured.glob("*")) if path.suffix in KEPT]
    if not files:
        return
    lines = [line for path in files if path.suffix == ".jsonl" for line in read(path)]
    name = folder_of(lines)
    if name is None:
        print("figures of a dry run, or none, are not stored")
        return
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copy(path, folder)
    print(f"stored: {', '.join(path.name for path in files)} in {folder}")


def folder_of(lines: Iterable[Line]) -> str | None:
    """The name of the GPU in letters, digits and dashes; none of what a dry run measured."""
    line = next(iter(lines), None)
    if line is None:
        return None
    name = re.sub(r"[^A-Za-z0-9]+", "-", line["device_name"]).strip("-")
    return name if line["device"] == "cuda" else None


# ---- what was validated ----------------------------------------------------------------------


def by_op(lines: Iterable[Line]) -> dict[Key, Found]:
    """All that was asked of each (backend, op), of those that ran on a GPU."""
    found: defaultdict[Key, Found] = defaultdict(Found)
    lines = list(lines)
    outcomes: dict[str, str] = {}
    for line in lines:
        if line["record"] == "outcome" and outcomes.get(line["test"]) != "failed":
            outcomes[line["test"]] = line["outcome"]
    for line in lines:
        of = (str(line.get("backend")), str(line.get("op")))
        if of[0] not in BACKENDS or not line["op"]:
            continue
        if line["record"] == "smoke":
            found[of].smoke[line["part"]] = line["said"]
            found[of].parts = line["parts"]
        elif line["record"] == "collected":
            found[of].tests[line["test"]] = outcomes.get(line["test"], "not run")
    for step in lines:
        if step["record"] != "step" or step["step"] != "memcheck":
            continue
        if step["outcome"] in (FAILED, TIMED_OUT):  # what it found until then, it has not said
            for of in found:
                if of[0] == "cuda":  # whose C++ it looks into
                    found[of].memory = f"memcheck: {step['why'] or step['outcome']}"
    return dict(found)


def architecture_of(lines: Iterable[Line]) -> str | None:
    """That of the GPU on which the ops were compared with the reference."""
    named = [line["architecture"] for line in lines if line["record"] == "machine"]
    return next(iter(named), None)


def merged(
    before: Validated, found: Mapping[Key, Found], architecture: str
) -> dict[Key, frozenset[str]]:
    """What is validated now: with the ops that did all, without those that were found wrong."""
    after = dict(before)
    for (backend, op), each in found.items():
        ops = after.get((backend, architecture), frozenset())
        if not each.against():
            ops |= {op}
        elif each.is_wrong:
            ops -= {op}
        after[backend, architecture] = ops
    return {key: ops for key, ops in after.items() if ops}


def existing() -> Validated:
    """What the table holds now."""
    from revdeq_kernels.core.validated import VALIDATED

    return VALIDATED


def table_of(validated: Validated) -> str:
    """The text of validated.py."""
    rows = []
    for (backend, architecture), ops in sorted(validated.items()):
        rows += [f'    ("{backend}", "{architecture}"): frozenset(', "        {"]
        rows += [f'            "{op}",' for op in sorted(ops)]
        rows += ["        }", "    ),"]
    return HEAD + "".join(f"\n{row}" for row in rows) + ("\n" if rows else "") + TAIL
