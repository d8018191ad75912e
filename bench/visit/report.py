"""What a call hands over: a summary to read, its lines of JSON, and one archive of everything."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.visit.runner import PASSED, SKIPPED, Result

STEPS = "steps.jsonl"
LAST = 12
"""Lines of a log in the summary, of a step that did not pass."""
LONGEST_LOG = 2**19
"""Bytes of a log in the archive: its begin and its end."""
LARGEST_FILE = 2**22
"""Bytes of another file; a larger one stays where it is, and the summary says so."""


def files_of(call: str) -> tuple[str, str, str]:
    """The names of the files that a call hands over."""
    return f"{call}.txt", f"{call}.jsonl", f"{call}.tar.gz"


def hand_over(call: str, about: str, results: Sequence[Result], work: Path, out: Path) -> str:
    """Write the three files anew; the summary."""
    text, lines, archive = (out / name for name in files_of(call))
    summary = summary_of(about, results, work)
    text.write_text(summary, encoding="utf-8")
    (work / text.name).write_text(summary, encoding="utf-8")
    steps = [json.dumps({"record": "step", **asdict(result)}) + "\n" for result in results]
    (work / STEPS).write_text("".join(steps), encoding="utf-8")
    found = [json.dumps(line) + "\n" for file in line_files(work) for line in read_lines(file)]
    lines.write_text("".join(found), encoding="utf-8")
    pack(work, archive)
    return summary


def line_files(work: Path) -> list[Path]:
    """The files of JSON lines, those of the benchmarks behind the others."""
    return [*sorted(work.glob("*.jsonl")), *sorted(work.glob("measured/*.jsonl"))]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file; one that was cut off by the end of its process is left out."""
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


# ---- the summary -----------------------------------------------------------------------------


def summary_of(about: str, results: Sequence[Result], work: Path) -> str:
    """A line for each step, then what those say that did not pass."""
    shown = [about, "", f"{'step':12}{'outcome':14}{'seconds':>8}{'of':>6}"]
    for r in results:
        counted = "; ".join(filter(None, [counts(work / f"{r.step}.jsonl"), r.why]))
        row = f"{r.step:12}{r.outcome:14}{r.seconds:8.0f}{r.allowed:6.0f}  {counted}"
        shown.append(row.rstrip())
    for r in results:
        if r.outcome not in (PASSED, SKIPPED):
            shown += ["", f"---- {r.step}", *failures(work / f"{r.step}.jsonl")]
            shown += last_lines(work / f"{r.step}.log")
    return "\n".join(shown) + "\n"


def counts(path: Path) -> str:
    """How many tests or parts came to what; nothing where there are no lines."""
    if not path.exists():
        return ""
    lines = list(read_lines(path))
    came = Counter(line["outcome"] for line in lines if line["record"] == "outcome")
    came.update(
        "right" if line["said"] == "same bits" else "wrong"
        for line in lines
        if line["record"] == "smoke"
    )
    collected = {line["test"] for line in lines if line["record"] == "collected"}
    missing = len(collected - {line["test"] for line in lines if line["record"] == "outcome"})
    came.update({"not run": missing} if missing else {})
    return ", ".join(f"{count} {word}" for word, count in came.items())


def failures(path: Path) -> list[str]:
    """One line for each of the first tests that failed, or parts that are wrong."""
    if not path.exists():
        return []
    found = []
    for line in read_lines(path):
        if line["record"] == "outcome" and line["outcome"] == "failed":
            said = (line["said"].strip().splitlines() or [""])[-1]
            found.append(f"{line['test']}: {said}")
        if line["record"] == "smoke" and line["said"] != "same bits":
            found.append(f"{line['backend']} {line['op']}: {line['said']}")
    return [line[:300] for line in found[:LAST]]


def last_lines(log: Path) -> list[str]:
    """The end of a log."""
    if not log.exists():
        return []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line[:300] for line in lines[-LAST:]]


# ---- the archive -----------------------------------------------------------------------------


def pack(work: Path, archive: Path) -> None:
    """All that the call has written; of long logs the begin and the end.

    The archive of before stays until the new one is whole.
    """
    part = archive.with_name(f"{archive.name}.part")
    with tarfile.open(part, "w:gz") as tar:
        for path in sorted(work.rglob("*")):
            if not path.is_file():
                continue
            data = path.read_bytes()
            if path.suffix == ".log" and len(data) > LONGEST_LOG:
                half = LONGEST_LOG // 2
                data = data[:half] + b"\n[... left out ...]\n" + data[-half:]
            elif len(data) > LARGEST_FILE:
                data = f"{len(data)} bytes: left where it was\n".encode()
            member = tarfile.TarInfo(path.relative_to(work).as_posix())
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    part.replace(archive)
