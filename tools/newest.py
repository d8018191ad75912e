"""Report what is new with another torch: the warnings and failures of two test runs.

python -m tools.newest FOLDER

FOLDER/first.xml is a run in which every warning is an error. FOLDER/beyond.xml, if it exists,
reran the failed tests without that, which distinguishes tests that only failed because of a warning
from others. The tests pass with the pinned versions (`make test`), so every failure here is new.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

WARNING = re.compile(r"(?:\w+\.)*\w*Warning: ")


def outcomes(report: Path) -> dict[str, str | None]:
    """From a pytest report: the message of each test that failed, None for tests that passed."""
    found: dict[str, str | None] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        failed = [child for child in case if child.tag in ("failure", "error")]
        found[name] = failed[0].get("message", "") if failed else found.get(name)
    return found


def report(first: Mapping[str, str | None], beyond: Mapping[str, str | None]) -> list[str]:
    """The lines to print: each warning with its tests, and each failure without a warning."""
    warned: dict[str, list[str]] = {}
    failed: dict[str, str] = {}
    for test, message in first.items():
        if message is None:
            continue
        if WARNING.match(message) and beyond.get(test) is None:
            warned.setdefault(message.splitlines()[0], []).append(test)
        else:
            failed[test] = beyond.get(test) or message
    lines = [f"{len(first)} tests: {len(warned)} new warnings, {len(failed)} new failures"]
    for warning, tests in sorted(warned.items(), key=lambda item: -len(item[1])):
        lines += [f"warning in {len(tests)} tests: {warning}", f"  {tests[0]}"]
    for test, message in failed.items():
        lines += [f"failure: {test}", *(f"  {line}" for line in message.splitlines()[:3])]
    return lines


def main(folder: Path) -> int:
    """Print the report; 1 if anything is new."""
    first, beyond = folder / "first.xml", folder / "beyond.xml"
    versions = [f"{name} {_version(name)}" for name in ("torch", "triton")]
    print(", ".join([f"python {platform.python_version()}", *versions]))
    lines = report(outcomes(first), outcomes(beyond) if beyond.exists() else {})
    print("\n".join(lines))
    return int(len(lines) > 1)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "is not installed"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
