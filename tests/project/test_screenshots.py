"""`make screenshots` finds what it looks for: pages too wide, names broken, tables cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project.documents import documents
from tools import chromium, screenshots

PAGE = "<!doctype html><html><body><div class='md-main'>{}</div></body></html>"
NAME = "an_identifier-that-has-places-where-it-could-break-in-two"


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Browser]:
    program = chromium.found()
    if program is None:
        pytest.skip("needs Chromium")
    with chromium.started(program) as found:
        found.size(400, 300)
        yield found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("<p>short</p>", ""),
        ("<p style='width: 900px' class='long'>wide</p>", "px wide in a window of 400: p.long"),
        ("<div style='overflow-x: auto'><p style='width: 900px'>wide</p></div>", ""),
        (f"<table><td style='max-width: 80px'><code>{NAME}</code></table>", "breaks names within"),
        (f"<table><td><code style='white-space: nowrap'>{NAME[:20]}</code></table>", ""),
        (
            "<div class='md-typeset' style='overflow: hidden; width: 300px'>"
            "<table style='display: block; width: 200px'><td><div style='width: 800px'>x</div>"
            "</table></div>",
            "cuts tables",
        ),
    ],
)
def test_faults(browser: chromium.Browser, tmp_path: Path, body: str, expected: str) -> None:
    (tmp_path / "index.html").write_text(PAGE.format(body), encoding="utf-8")
    with screenshots.served(tmp_path) as base:
        browser.open(base)
        found = screenshots.faults(browser)
        browser.screenshot(tmp_path / "seen.png")
    assert (expected in "".join(found)) if expected else found == []
    assert (tmp_path / "seen.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_script_that_raises_is_an_error(browser: chromium.Browser) -> None:
    with pytest.raises(RuntimeError, match="missing"):
        browser.run("missing()")
    assert browser.run("Promise.resolve(6 * 7)") == 42


def test_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chromium, "found", lambda: None)
    assert screenshots.main(["--out", str(tmp_path)]) == 2
    assert "apt-get install chromium" in capsys.readouterr().err
    monkeypatch.setattr(chromium, "found", lambda: "chromium")
    assert screenshots.main(["--site", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "make docs" in capsys.readouterr().err


def test_pages_and_searches_are_of_documents_that_exist() -> None:
    pages = {page.partition("#")[0] for page in screenshots.PAGES}
    for page in {*pages, *screenshots.DARK} - {"benchmarks-solver-figures"}:
        assert f"docs/{page}.md" in documents(), page
    for page in screenshots.SEARCHES.values():
        assert f"docs/{page.rstrip('/')}.md" in documents(), page
    assert screenshots.address("http://x/", "index") == "http://x/"
    assert screenshots.address("http://x/", "memory#a") == "http://x/memory/#a"
