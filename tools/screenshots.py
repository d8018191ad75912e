"""`python -m tools.screenshots`: pages of the site at three widths, in build/screenshots.

And whether a reader can use them: at no width may a page be wider than the window (what is wide
scrolls within itself), a name break within a cell of a table, or the search miss what people ask
it. The site is what `make docs` has built. Needs Chromium (on Debian `apt-get install chromium`).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools import chromium

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = (1280, 800, 400)
HEIGHT = 1000
PAGES = (
    "index", "quickstart", "exact", "glossary", "composes", "composes#options-among-each-other",
    "from-torchdeq#what-replaces-what", "kernels", "api/solver", "benchmarks-solver-figures",
)  # fmt: skip
DARK = ("index", "exact", "composes")
SEARCHES = {"out of memory": "memory/", "callback": "watching/", "save load": "training/"}
"""What people type, and the page that is to be among the first answers."""

FIRST = 3  # answers that count as the first

# The elements that reach beyond the window and do not scroll within a parent.
WIDER = """(() => {
  const width = document.documentElement.clientWidth
  const scrolls = e => e && (['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX)
    && e !== document.body && e !== document.documentElement || scrolls(e.parentElement))
  const wide = [...document.querySelectorAll('.md-main *, .md-footer *')]
    .filter(e => e.getBoundingClientRect().right > width + 1 && !scrolls(e.parentElement))
    .map(e => e.tagName.toLowerCase() + (e.className ? '.' + e.className : ''))
  return [document.documentElement.scrollWidth, width, wide.slice(0, 3).join(', ')]
})()"""
# Code without a space in a cell that takes more than one line.
BROKEN = """[...document.querySelectorAll('td code, th code')]
  .filter(e => !/\\s/.test(e.textContent) && e.getClientRects().length > 1)
  .map(e => e.textContent).slice(0, 5).join(', ')"""
# Tables that are cut without a way to scroll to the rest.
CUT = """[...document.querySelectorAll('.md-typeset table')]
  .map(e => [e, e.closest('.md-typeset__scrollwrap') || e])
  .filter(([e, box]) => e.scrollWidth > box.clientWidth + 1
    && !['auto', 'scroll'].includes(getComputedStyle(box).overflowX)
    && !['auto', 'scroll'].includes(getComputedStyle(e).overflowX))
  .map(([e]) => e.innerText.slice(0, 40)).join('; ')"""
ASKED = """new Promise(done => {
  document.querySelector('#__search').checked = true
  const box = document.querySelector('.md-search__input')
  box.focus(); box.value = %r
  box.dispatchEvent(new Event('keyup', {bubbles: true}))
  box.dispatchEvent(new Event('input', {bubbles: true}))
  const look = left => {
    const links = [...document.querySelectorAll('.md-search-result__item > a')].map(a => a.href)
    links.length || !left ? done(links) : setTimeout(look, 100, left - 1)
  }
  look(100)
})"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves the site without a word."""

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def served(site: Path) -> Iterator[str]:
    """The site's address: its search reads the index over HTTP."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def address(base: str, page: str) -> str:
    """Of a page, by the name of its document."""
    page, anchor = page.removeprefix("index").partition("#")[::2]
    return f"{base}{page}/#{anchor}" if anchor else f"{base}{page}/" if page else base


def faults(browser: chromium.Browser) -> list[str]:
    """What is wrong with the open page at this width."""
    found = []
    scroll, window, wide = browser.run(WIDER)
    if scroll > window:
        found.append(f"is {scroll} px wide in a window of {window}: {wide}")
    if broken := browser.run(BROKEN):
        found.append(f"breaks names within cells: {broken}")
    if cut := browser.run(CUT):
        found.append(f"cuts tables: {cut}")
    return found


def looked_at(browser: chromium.Browser, base: str, out: Path) -> list[str]:
    """The screenshots, and the faults of the pages."""
    found = []
    for width in WIDTHS:
        browser.size(width, HEIGHT)
        for page in PAGES:
            browser.open(address(base, page))
            browser.screenshot(out / f"{re.sub('[/#]', '-', page)}-{width}.png")
            found += [f"{page} at {width} px {fault}" for fault in faults(browser)]
    browser.dark(on=True)
    browser.open("about:blank")
    # The theme keeps what it chose for pages on light ground.
    browser.call("Storage.clearDataForOrigin", origin=base.rstrip("/"), storageTypes="all")
    browser.size(WIDTHS[0], HEIGHT)
    for page in DARK:
        browser.open(address(base, page))
        browser.screenshot(out / f"{page}-dark.png")
    browser.dark(on=False)
    return found


def searched(browser: chromium.Browser, base: str) -> list[str]:
    """The searches that miss the page that answers them."""
    found = []
    browser.size(WIDTHS[0], HEIGHT)
    for words, page in SEARCHES.items():
        browser.open(base)
        links = browser.run(ASKED % words)
        if not any(link.startswith(base + page) for link in links[:FIRST]):
            found.append(f"search for {words!r}: expected {page} first, got {links[:FIRST]}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Take them; 1 where a page or a search has a fault, 2 where something is missing."""
    parser = argparse.ArgumentParser(prog="python -m tools.screenshots", description=__doc__)
    parser.add_argument("--site", type=Path, default=ROOT / "build" / "docs", help="the built site")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "screenshots", help="where the pictures go"
    )
    chosen = parser.parse_args(arguments)
    program = chromium.found()
    if program is None:
        print("expected Chromium, found none: `apt-get install chromium`", file=sys.stderr)
        return 2
    if not (chosen.site / "index.html").exists():
        print(f"expected a site in {chosen.site}, found none: `make docs`", file=sys.stderr)
        return 2
    chosen.out.mkdir(parents=True, exist_ok=True)
    with served(chosen.site) as base, chromium.started(program) as browser:
        found = looked_at(browser, base, chosen.out) + searched(browser, base)
    for fault in found:
        print(fault, file=sys.stderr)
    count = len(WIDTHS) * len(PAGES)
    print(f"{count} pages looked at, {len(SEARCHES)} searches: {len(found)} faults; {chosen.out}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
