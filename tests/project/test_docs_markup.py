"""What the site makes of equations, figures, tables and searches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.project.documents import ROOT, documents

pytest.importorskip("mkdocs", reason="mkdocs needs python 3.11")
from tools import docs_markup


def test_every_equation_is_mathml() -> None:
    pytest.importorskip("latex2mathml")
    blocks = [b for document in documents().values() for b in document.blocks("math")]
    assert blocks
    for block in blocks:
        tree = ElementTree.fromstring(docs_markup.mathml(block.code))
        text = "".join(tree.itertext())
        assert tree[0].tag.endswith("math") and tree[0].get("display") == "block"
        assert "←" in text or "=" in text
        assert "\\" not in text  # a command that was not understood


def test_a_figure_with_a_dark_twin_is_shown_as_both() -> None:
    files: Any = [SimpleNamespace(src_uri=name) for name in ("a.svg", "a-dark.svg", "b.svg")]
    page: Any = None
    text = docs_markup.pictures("![it](../a.svg) ![that](b.svg)", files, page)
    assert text == "![it](../a.svg#only-light)\n![it](../a-dark.svg#only-dark) ![that](b.svg)"


def test_every_svg_of_the_documents_has_a_dark_twin() -> None:
    shown = [
        (ROOT / document.name).parent / link
        for document in documents().values()
        for link in document.links
        if link.endswith(".svg")
    ]
    assert shown
    for path in shown:
        assert path.with_name(f"{path.stem}-dark.svg").exists(), path


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("| a | b |\n|---|---|\n| c | d |", 2),
        ("| a |\n|---|\n\n```\n| a | b | c |\n```\n", 1),
        (r"| `a \| b` | c |", 2),
        ("no table", 0),
    ],
)
def test_columns(text: str, columns: int) -> None:
    assert docs_markup.columns(text) == columns


def table(*rows: str) -> str:
    cells = ["".join(f"<td>{cell}</td>" for cell in row.split()) for row in rows]
    heads = "".join(f"<th>{place}</th>" for place in range(len(rows[0].split())))
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def test_answers_have_a_symbol_and_keep_their_word() -> None:
    html = docs_markup.tables(table("tol yes refused", "trace yes gpu"))
    assert html.startswith('<table class="answers">')
    for word in ("yes", "refused", "gpu"):
        assert f'class="answer {word}"' in html and f">{word}</span>" in html
        assert docs_markup.CELLS[word] in html
    assert "matrix" not in html
    wide = docs_markup.tables(table("row " + "yes " * docs_markup.MATRIX))
    assert 'class="answers matrix"' in wide and 'title="yes"' in wide


def test_words_in_other_tables_and_in_text_are_left() -> None:
    plain = table("yes it is", "or not so")
    assert docs_markup.tables(plain) == plain
    assert docs_markup.tables("<p>yes</p>") == "<p>yes</p>"


def test_a_name_in_a_cell_does_not_break_and_an_expression_may() -> None:
    html = docs_markup.tables(table("<code>max_steps</code> x"))
    assert '<code class="name">max_steps</code>' in html
    text = "<table><td><code>f(a, b)</code></td></table><code>max_steps</code>"
    assert docs_markup.tables(text) == text


def test_words_to_search_for_are_on_pages_that_exist() -> None:
    for page in docs_markup.ALSO_SEARCHED:
        assert f"docs/{page}" in documents(), page
