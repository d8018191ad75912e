"""What the report says in words, taken from the pages in `bench/` so that it is written once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.token import Token

from bench.core.machine import ROOT

PAGES = sorted((ROOT / "bench").glob("*.md"))
_markdown = MarkdownIt("commonmark").enable("table")
# A link leads to a file beside the pages, or away; a report that stands alone keeps its text.
_markdown.add_render_rule("link_open", lambda *_: "")
_markdown.add_render_rule("link_close", lambda *_: "")


@cache
def meanings(of: str) -> dict[str, str]:
    """By name: what a provider or a part is, as HTML. From tables headed `| provider | is |`."""
    found: dict[str, str] = {}
    for page in PAGES:
        for row in _rows(page.read_text(encoding="utf-8"), [of, "is"]):
            if len(row) == 2:
                for name in re.findall(r"`([^`]+)`", row[0]):
                    found[name] = _markdown.renderInline(row[1])
    return found


def _rows(text: str, head: list[str]) -> Iterator[list[str]]:
    """The cells of the rows below such a head."""
    cells: list[str] = []
    inside = False
    for token in _markdown.parse(text):
        if token.type == "tr_open":
            cells = []
        elif token.type == "inline":
            cells.append(token.content)
        elif token.type == "thead_close":
            inside = cells == head
        elif token.type == "tr_close" and inside and cells != head:
            yield cells
        elif token.type == "table_close":
            inside = False


def section(heading: str) -> str:
    """What stands below a heading, up to the next one that is not deeper, as HTML."""
    found = []
    for page in PAGES:
        tokens = _markdown.parse(page.read_text(encoding="utf-8"))
        found += [(tokens, i) for i in range(len(tokens)) if _is_heading(tokens, i, heading)]
    if len(found) != 1:
        raise ValueError(
            f"bench/*.md: expected one heading {heading!r}, got {len(found)}; the report takes "
            "its words from there, so rename both"
        )
    ((tokens, start),) = found
    begin, level = start + 3, tokens[start].tag
    ends = (
        i
        for i in range(begin, len(tokens))
        if tokens[i].type == "heading_open" and tokens[i].tag <= level
    )
    body = tokens[begin : next(ends, len(tokens))]
    return _markdown.renderer.render(body, _markdown.options, {})


def _is_heading(tokens: list[Token], i: int, text: str) -> bool:
    return tokens[i].type == "heading_open" and tokens[i + 1].content == text
