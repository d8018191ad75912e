"""Hooks for `mkdocs.yml` that add documents and files outside of docs/ to the site.

In the repository, documents link to each other and to tests, sources and results by path. In the
site, CONTRIBUTING.md and similar documents become pages. Every other linked file becomes a source
page under source/ (or a copy, if it is not text), and a folder becomes a list of its files. Links
are rewritten accordingly. README.md is no page: the front page of the site is docs/index.md.
docs_markup.py changes what is within pages.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs/"

PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "findings/README.md": "findings.md",
    "bench/README.md": "benchmarks.md",
    "bench/ops.md": "benchmarks-ops.md",
    "bench/cell.md": "benchmarks-cell.md",
    "bench/solver.md": "benchmarks-solver.md",
    "bench/solver-figures.md": "benchmarks-solver-figures.md",
}
"""Documents outside of docs/, and their paths in the site."""

FRONT = {"README.md": "index.md"}
"""Documents that are no page, and the page that a link to one leads to."""

LANGUAGES = {
    ".py": "python",
    ".pyi": "python",
    ".h": "cpp",
    ".cpp": "cpp",
    ".cu": "cpp",
    ".cuh": "cpp",
    ".sh": "bash",
    ".toml": "toml",
    ".yml": "yaml",
    ".txt": "text",
    "": "text",
}
"""By suffix: how a file is highlighted. Other files are copied unchanged."""

# A link's target, or code. Code comes first, because it may contain text that looks like a link.
_CODE_OR_LINK = re.compile(
    r"^(?P<fence>`{3,})[^\n]*\n.*?^(?P=fence)\s*$|(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`)"
    r"|\]\((?P<target>[^)\s]+)\)",
    re.MULTILINE | re.DOTALL,
)


def links_changed(markdown: str, change: Callable[[str], str]) -> str:
    """The text with `change` applied to every link target outside of code."""

    def replaced(match: re.Match[str]) -> str:
        target = match["target"]
        return match[0] if target is None else f"]({change(target)})"

    return _CODE_OR_LINK.sub(replaced, markdown)


def relative_links(markdown: str) -> list[str]:
    """The targets of links to files, as written."""
    found: list[str] = []
    links_changed(markdown, lambda target: found.append(target) or target)
    return [target for target in found if not re.match(r"[a-z]+:|#|/", target)]


def in_repository(document: str, target: str) -> str:
    """The target of a link in `document`, as a path from the root of the repository."""
    path = unquote(target.partition("#")[0])
    return posixpath.normpath(posixpath.join(posixpath.dirname(document), path))


def in_site(path: str) -> str:
    """The path of a file or folder of the repository in the site's sources."""
    if page := (PAGES | FRONT).get(path):
        return page
    if path.startswith(DOCS):
        return path.removeprefix(DOCS)
    if (ROOT / path).is_dir():
        return f"source/{path}/index.md"
    shown = Path(path).suffix in LANGUAGES
    return f"source/{path}.md" if shown else f"source/{path}"


def link_in_site(document: str, target: str) -> str:
    """A link of `document`, rewritten for its page in the site."""
    if re.match(r"[a-z]+:|#|/", target):
        return target
    page, anchor = in_site(document), target.partition("#")[1:]
    there = in_site(in_repository(document, target))
    return posixpath.relpath(there, posixpath.dirname(page) or ".") + "".join(anchor)


def documents() -> Iterator[str]:
    """All documents, which become pages."""
    yield from PAGES
    for path in sorted((ROOT / DOCS).rglob("*.md")):
        yield path.relative_to(ROOT).as_posix()


def linked_files() -> list[str]:
    """The files and folders outside of docs/ that documents link to, and the folders' contents."""
    found: set[str] = set()
    for document in documents():
        for target in relative_links((ROOT / document).read_text(encoding="utf-8")):
            path = in_repository(document, target)
            if (
                path in PAGES
                or path in FRONT
                or path.startswith(DOCS)
                or not (ROOT / path).exists()
            ):
                continue  # mkdocs reports broken links
            found.add(path)
            found |= {entry for entry in _files_below(path) if entry not in PAGES}
    return sorted(found)


def _files_below(path: str) -> list[str]:
    if not (ROOT / path).is_dir():
        return []
    files = (file for file in sorted((ROOT / path).rglob("*")) if file.is_file())
    return [file.relative_to(ROOT).as_posix() for file in files if "__pycache__" not in file.parts]


def source_page(path: str) -> str:
    """A file as a page, or a folder as a list of links."""
    head = "---\nsearch:\n  exclude: true\nhide: [toc]\n---\n\n"
    if (ROOT / path).is_dir():
        page = posixpath.dirname(in_site(path))
        rows = [
            f"- [{entry.removeprefix(path + '/')}]({posixpath.relpath(in_site(entry), page)})"
            for entry in _files_below(path)
        ]
        return f"{head}# {path}/\n\n" + "\n".join(rows) + "\n"
    text = (ROOT / path).read_text(encoding="utf-8").rstrip("\n")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{head}# {path}\n\n{fence}{LANGUAGES[Path(path).suffix]}\n{text}\n{fence}\n"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The mkdocs event: all files are known."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=os.fspath(ROOT / path)))
    for path in linked_files():
        place = in_site(path)
        if place.endswith(".md"):
            files.append(File.generated(config, place, content=source_page(path)))
        else:
            files.append(File.generated(config, place, abs_src_path=os.fspath(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The mkdocs event: the text of a page was read."""
    source = page.file.abs_src_path
    if source is None:  # a page generated by this module
        return markdown
    document = Path(source).relative_to(ROOT).as_posix()
    return links_changed(markdown, lambda target: link_in_site(document, target))
