"""The examples of the documents run as they stand, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "bench/README.md",
    "docs/kernels.md",
    "docs/choosing.md",
    "docs/composes.md",
    "docs/models.md",
)
WITH_CODE = ("README.md", "docs/choosing.md", "docs/models.md")


def blocks(name: str) -> list[str]:
    """The Python in a document, with empty lines before it so that errors name its lines."""
    text = (ROOT / name).read_text()
    found = re.finditer(r"```python\n(.*?)```", text, re.DOTALL)
    return ["\n" * text[: match.start(1)].count("\n") + match[1] for match in found]


@pytest.mark.parametrize("name", WITH_CODE)
def test_examples(name: str) -> None:
    """In their order, as a reader would run them: a later one may use the names of an earlier."""
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "example"}
    assert blocks(name)
    for example in blocks(name):
        exec(compile(example, str(ROOT / name), "exec"), names)


def test_every_document_with_python_is_run() -> None:
    documents = {str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")} | set(DOCUMENTS)
    assert {name for name in documents if blocks(name)} == set(WITH_CODE)


def test_the_example_of_the_ops_checks_itself() -> None:
    assert sum("assert torch.equal(y, start)" in example for example in blocks("README.md")) == 1


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links(name: str) -> None:
    text = (ROOT / name).read_text()
    links = re.findall(r"\]\((?!http|#)([^)#]+)", text)
    missing = [link for link in links if not (ROOT / name).parent.joinpath(link).exists()]
    assert not missing
    headings = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings
