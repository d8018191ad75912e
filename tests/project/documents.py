"""The documents, parsed as CommonMark: their code, links and headings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, cached_property

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests import ROOT

PLACES = ("*.md", "findings/*.md", "bench/*.md", "docs/**/*.md", "examples/*.md")

MARK = re.compile(r"<!-- test: (?P<mark>.+) -->")
"""A hidden comment in the line before a block of code."""


@dataclass(frozen=True)
class Block:
    """A block of code, and its mark: "slow", or "needs ..."."""

    language: str
    code: str
    line: int  # line number of its first line of code, from 1
    mark: str | None


@dataclass(frozen=True)
class Document:
    """One document, by its path from the root of the repository."""

    name: str

    @cached_property
    def text(self) -> str:
        """The raw text."""
        return (ROOT / self.name).read_text(encoding="utf-8")

    @cached_property
    def _tokens(self) -> list[Token]:
        return MarkdownIt().enable("table").parse(self.text)

    @cached_property
    def _inlines(self) -> list[Token]:
        return [child for token in self._tokens for child in token.children or ()]

    def blocks(self, *languages: str) -> list[Block]:
        """The blocks of code in these languages, or in all; "" means no language."""
        found = []
        for before, token in zip([None, *self._tokens], self._tokens, strict=False):
            language = token.info.strip()
            if token.type == "fence" and (language in languages or not languages):
                assert token.map is not None
                mark = (
                    MARK.search(before.content) if before and before.type == "html_block" else None
                )
                found.append(
                    Block(language, token.content, token.map[0] + 2, mark and mark["mark"])
                )
        return found

    @cached_property
    def links(self) -> list[str]:
        """The targets of its links and pictures within the repository."""
        targets = [str(t.attrs.get("href", t.attrs.get("src", ""))) for t in self._inlines]
        return [target for target in targets if target and not re.match("[a-z]+:", target)]

    @cached_property
    def spans(self) -> list[str]:
        """Its inline code."""
        return [token.content for token in self._inlines if token.type == "code_inline"]

    @cached_property
    def anchors(self) -> set[str]:
        """Its anchors: the headings in the form used by forges."""
        headings = [
            "".join(t.content for t in content.children or ())
            for opening, content in zip(self._tokens, self._tokens[1:], strict=False)
            if opening.type == "heading_open"
        ]
        return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


@cache
def documents() -> dict[str, Document]:
    """All documents by name."""
    names = {
        path.relative_to(ROOT).as_posix() for place in PLACES for path in sorted(ROOT.glob(place))
    }
    return {name: Document(name) for name in sorted(names)}


def having(*languages: str) -> list[str]:
    """The names of documents with code in these languages."""
    return [name for name, document in documents().items() if document.blocks(*languages)]
