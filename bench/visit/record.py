"""`pytest -p bench.visit.record` writes a line for each test as soon as it is done.

A run that is stopped at its limit keeps them. Two kinds of lines: what was collected, with the op
and the backend that a test is of, and what came of it.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from bench.visit.spoiled import is_spoiled

LONGEST = 2000
"""Letters kept of what a failed test says."""

_lines: Path | None = None
_passed = _failed = False
_reports = True
"""Whether this process writes what came of the tests: not one that runs them for another."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The file to write to."""
    parser.addoption("--visit-lines", type=Path, default=None)


def pytest_configure(config: pytest.Config) -> None:
    """Whoever is told to end prints what there is first, as for an interrupt."""
    global _lines, _reports
    _lines, _reports = config.getoption("--visit-lines"), not hasattr(config, "workerinput")
    if _reports:
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Of many processes the first writes what all of them have collected."""
    worker = getattr(session.config, "workerinput", {}).get("workerid", "gw0")
    if worker != "gw0":
        return
    for item in session.items:
        write(record="collected", test=item.nodeid, **subject(getattr(item, "callspec", None)))


def subject(callspec: Any) -> dict[str, str | None]:
    """The op and the backend of a test, from its parameters."""
    params = {} if callspec is None else callspec.params
    backend = getattr(params.get("on"), "backend", params.get("backend"))
    return {"op": params.get("op"), "backend": backend}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One line for a test: of its call, or of what kept it from being called."""
    global _passed, _failed
    _passed |= report.when == "call" and report.outcome == "passed"
    _failed |= report.outcome == "failed"
    if _reports and (report.when == "call" or report.outcome != "passed"):
        said = report.longreprtext[-LONGEST:] if report.outcome != "passed" else ""
        seconds = round(report.duration, 3)
        outcome = report.outcome
        write(record="outcome", test=report.nodeid, outcome=outcome, seconds=seconds, said=said)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish() -> None:
    """One of many processes ends where no later test could pass; another takes its place."""
    if not _reports and _failed and is_spoiled():
        os._exit(1)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run in which every test was skipped has shown nothing."""
    if exitstatus == pytest.ExitCode.OK and not (_passed or session.config.option.collectonly):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


def write(**line: Any) -> None:
    """Append a line, at once."""
    if _lines is not None:
        with _lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
