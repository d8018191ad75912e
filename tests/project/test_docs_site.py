"""The links of the site (`make docs`) lead to the same places as those of the documents."""

from __future__ import annotations

import inspect
import posixpath
import re
from typing import Any

import pytest

import revdeq_kernels as rk
import torch_revdeq
import torch_revdeq.models
from tests.project.documents import ROOT, documents

pytest.importorskip("mkdocs", reason="mkdocs needs python 3.11")
from tools import docs_site


def test_every_link_is_seen() -> None:
    """By CommonMark's own parser, and by the expression that changes links."""
    for document in documents().values():
        seen = docs_site.relative_links(document.text)
        assert seen == [link for link in document.links if not link.startswith("#")], document.name


def test_every_document_is_a_page() -> None:
    """But README.md: the site has a front page of its own, where links to README.md lead."""
    assert {*documents()} - {"README.md"} == {*docs_site.documents()}
    assert docs_site.link_in_site("docs/memory.md", "../README.md") == "index.md"


@pytest.mark.parametrize(
    ("document", "target", "expected"),
    [
        ("README.md", "docs/exact.md#the-precision-cliff", "exact.md#the-precision-cliff"),
        ("README.md", "tests/ops/test_errors.py", "source/tests/ops/test_errors.py.md"),
        ("docs/exact.md", "../bench/solver.md#the-maps", "benchmarks-solver.md#the-maps"),
        ("docs/exact.md", "kernels.md", "kernels.md"),
        ("docs/api/testing.md", "../debugging.md", "../debugging.md"),
        ("docs/choosing.md", "../bench/results", "source/bench/results/index.md"),
        ("bench/README.md", "../docs/error-against-depth.svg", "error-against-depth.svg"),
        ("bench/README.md", "solver.md#solvecost", "benchmarks-solver.md#solvecost"),
        ("bench/README.md", "#what-changed", "#what-changed"),
        ("docs/exact.md", "https://arxiv.org/abs/2509.12917", "https://arxiv.org/abs/2509.12917"),
    ],
)
def test_links_lead_to_pages(document: str, target: str, expected: str) -> None:
    assert docs_site.link_in_site(document, target) == expected


def test_code_is_left_as_it_is() -> None:
    text = "[a](tests)\n`before = b[0](x)`\n```python\nc[0](x)\n```\n``d[`](x)`` [e](README.md)\n"
    changed = docs_site.links_changed(text, str.upper)
    assert changed == text.replace("(tests)", "(TESTS)").replace("(README.md)", "(README.MD)")


def test_a_file_as_a_page_is_the_file() -> None:
    for path in ("tests/project/documents.py", "tests/project/test_docs_site.py"):
        page = docs_site.source_page(path)
        assert (ROOT / path).read_text().rstrip("\n") in page
        fence = page.rstrip().splitlines()[-1]
        assert set(fence) == {"`"} and page.count(f"\n{fence}") == 2


@pytest.mark.parametrize(
    "module", [torch_revdeq, torch_revdeq.models, rk], ids=lambda m: m.__name__
)
def test_powers_in_docstrings_are_no_emphasis(module: Any) -> None:
    """Two ** in one paragraph of Markdown make what is between them bold, and are gone."""
    for name in module.__all__:
        text = re.sub(
            "(`+).+?\\1", "", inspect.getdoc(getattr(module, name)) or "", flags=re.DOTALL
        )
        assert not re.search(r"\*\*\S(?:.|\n(?! *\w+:|\n))*?\*\*", text), name


def test_a_folder_is_a_list_of_its_files() -> None:
    page = docs_site.source_page("bench/results")
    stored = [path for path in (ROOT / "bench/results").rglob("*") if path.is_file()]
    assert stored
    for path in stored:
        link = posixpath.relpath(path.relative_to(ROOT).as_posix(), "bench/results")
        assert f"({link})" in page
