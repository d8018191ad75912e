"""What `mkdocs.yml` changes within the pages: equations, figures on dark ground, tables, search.

The documents themselves stay plain Markdown, as a forge shows them. An equation is a block of
```math, which becomes MathML when the site is built, so that no page loads a script for it.
"""

from __future__ import annotations

import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

WIDE = 6
"""Columns of a table from which on its page hides the table of contents, to give it the room."""

MATRIX = 10
"""Columns from which on a table of yes and no shows symbols alone."""

CELLS = {"yes": "✓", "refused": "✕", "raises": "✕", "gpu": "◷"}
"""What a table of what composes says in a cell, and its symbol."""

ALSO_SEARCHED = {
    "memory.md": "out of memory, OOM, CUDA out of memory, peak memory",
    "watching.md": "callback, progress, log every step, monitor",
    "training.md": "save and load a model, state_dict, save load, resume training",
    "distributed.md": "multi-GPU, several GPUs, data parallel",
    "sixteen-bits.md": "mixed precision, AMP, bf16, fp16, half precision",
    "debugging.md": "NaN, error message, ReconstructionError, wrong gradient",
    "installing.md": "pip, CUDA, compiler, environment variables",
    "choosing.md": "hyperparameters, which beta, max_steps, tolerance",
    "looped.md": "early stopping, adaptive depth, truncated backpropagation",
}
"""By page: words that people search for, and that its text does not use."""

# A picture on a line; an SVG beside which one for dark ground stands.
_PICTURE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<stem>[^)#\s]+)\.svg\)")
_ROW = re.compile(r"^\|.*\|\s*$", re.MULTILINE)
_CODE = re.compile(r"^(?P<fence>`{3,}).*?^(?P=fence)\s*$", re.MULTILINE | re.DOTALL)
_TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
_NAME = re.compile(r"<code>([^\s<]{1,64})</code>")


def mathml(source: str, *_: Any, **__: Any) -> str:
    """An equation in LaTeX as a block of MathML."""
    from latex2mathml.converter import convert

    return f'<div class="equation">{convert(source.strip(), display="block")}</div>'


def columns(markdown: str) -> int:
    """Of the widest table, outside of code."""
    rows = _ROW.findall(_CODE.sub("", markdown))
    return max((row.replace("\\|", "").count("|") - 1 for row in rows), default=0)


def pictures(markdown: str, files: Files, page: Page) -> str:
    """A figure of which there is one for dark ground as both: the theme shows the one that fits."""

    def both(found: re.Match[str]) -> str:
        dark = f"{found['stem']}-dark.svg"
        name = dark.rpartition("/")[2]
        if not any(file.src_uri.rpartition("/")[2] == name for file in files):
            return found[0]
        alt, light = found["alt"], f"{found['stem']}.svg"
        return f"![{alt}]({light}#only-light)\n![{alt}]({dark}#only-dark)"

    return _PICTURE.sub(both, markdown)


def tables(html: str) -> str:
    """Names that do not break within a cell; answers that are seen at a glance."""

    def answer(wide: bool) -> Any:
        def replaced(found: re.Match[str]) -> str:
            attributes, word = found[1] or "", found[2]
            inner = (
                f'<span aria-hidden="true">{CELLS[word]}</span> <span class="word">{word}</span>'
            )
            shown = f' title="{word}"' if wide else ""
            return f'<td{attributes} class="answer {word}"{shown}>{inner}</td>'

        return replaced

    def changed(found: re.Match[str]) -> str:
        table = _NAME.sub(r'<code class="name">\1</code>', found[0])
        heads = table.partition("</thead>")[0].count("</th>")
        words = "|".join(CELLS)
        cells = re.compile(rf"<td( style=[^>]*)?>({words})</td>")
        if len(cells.findall(table)) < max(2, heads - 1):
            return table
        wide = heads >= MATRIX
        table = cells.sub(answer(wide), table)
        if wide:
            table = re.sub(r"<th( style=[^>]*)?>(.+?)</th>", r"<th\1><span>\2</span></th>", table)
        return table.replace("<table>", f'<table class="answers{" matrix" if wide else ""}">', 1)

    return _TABLE.sub(changed, html)


# ---- mkdocs' events ----------------------------------------------------------------------------


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The settings were read: blocks of ```math are equations."""
    fence = {"name": "math", "class": "math", "format": mathml}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text of a page was read."""
    if columns(markdown) >= WIDE:
        page.meta.setdefault("hide", ["toc"])
    if page.file.src_uri == "index.md":
        page.meta.setdefault("hide", ["navigation", "toc"])
    return pictures(markdown, files, page)


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page is HTML, and not yet in the search index."""
    html = tables(html)
    if words := ALSO_SEARCHED.get(page.file.src_uri):
        html = html.replace("</h1>", f"</h1>\n<p hidden>Also searched for: {words}.</p>", 1)
    return html
