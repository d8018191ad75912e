"""`python -m bench.show.html RESULTS.jsonl... --out report.html`: stored results as one file.

It has the results, tables and figures, the machine, a list of the implementations, and the
commands to measure again. It loads nothing else, and needs no network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import zip_longest
from pathlib import Path
from string import Template
from typing import Any

from bench import suite
from bench.core import labels, stored
from bench.core.command_line import Parser
from bench.core.session import Record
from bench.core.table import Family, Table
from bench.profile import profiling
from bench.profile.attribution import PARTS
from bench.show import explained, figures, inline_svg
from bench.show import headline as headlines

# Rows of a table that is shown at once.
SHORT = 12
PAGE = Path(__file__).resolve().parent / "page.html"
# Facts of a line, and how they are named; `load_average` and `date` differ from run to run.
FACTS = {
    "device_name": "machine",
    "device": "device",
    "cache_bytes": "last cache, bytes",
    "python": "python",
    "torch": "torch",
    "triton": "triton",
    "revdeq_kernels": "revdeq-kernels",
    "commit": "commit",
}


def page(records: Sequence[Record]) -> str:
    """The whole file: results first, then how they were measured."""
    if not records:
        raise ValueError("results: expected at least one line, got none; run `python -m bench`")
    sections = [
        ("headline", "Results", headline(records)),
        ("refused", "Without results", refused(records)),
        *(
            (family.name, family.title, section_of(family, lines))
            for family, lines in suite.by_family(records).items()
        ),
        ("machine", "The machine", environment(records)),
        ("providers", "Implementations", details("What each one is", provider_list(records))),
        ("again", "How to measure again", commands(records)),
    ]
    shown = [section for section in sections if section[2]]
    body = "\n".join(
        f'<section id="{name}">\n<h2>{heading}</h2>\n{content}\n</section>'
        for name, heading, content in shown
    )
    links = " ".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in shown)
    light, dark = inline_svg.styles()
    template = Template(PAGE.read_text(encoding="utf-8"))
    return template.substitute(
        title="benchmark report", links=links, body=body, light=light, dark=dark
    )


# ---- the headline -----------------------------------------------------------------------------


def headline(records: Sequence[Record]) -> str:
    """What comes of it, on which machine, and how to read the tables below."""
    by_machine = grouped(records, lambda r: r["device_name"])
    parts = []
    for name, lines in by_machine.items():
        found = headlines.sentences(lines)
        items = "\n".join(f"<li><strong>{what}</strong>: {text}.</li>" for what, text in found)
        parts.append(f"<p>{escape(name)}</p>")
        parts += [f"<ul>\n{items}\n</ul>"] if items else []
    if any(record.get("tier") == "quick" for record in records):
        parts.append("<p>From a smoke run at small sizes (--quick): not for quoting.</p>")
    if busy := sum(map(stored.busy, records)):
        parts.append(
            '<p class="busy"><strong>Busy machine:</strong> other programs were running when '
            f"{busy} of these {len(records)} rows were measured. Times may be too long; memory "
            "and errors do not depend on it.</p>"
        )
    bold = (
        "Ratios below 1x: this project is faster. In the tables, bold rows are this project's; "
        f"the others are baselines. {labels.DISTURBED} marks a time that was measured while other "
        "programs took more than half a core."
    )
    return "\n".join([*parts, f"<p>{bold}</p>"])


# ---- the machine ------------------------------------------------------------------------------


def environment(records: Sequence[Record]) -> str:
    """One table for each machine and commit, folded."""
    by_facts: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        by_facts.setdefault(tuple(record[name] for name in FACTS), []).append(record)
    return "\n".join(_machine(group) for group in by_facts.values())


def _machine(records: Sequence[Record]) -> str:
    first = records[0]
    rows = [(label, first[name]) for name, label in FACTS.items()]
    threads = {record["threads"] for record in records} - {None}
    rows.append(("threads", ", ".join(map(str, sorted(threads))) or "those of the GPU"))
    rows.append(("date", _span(record["date"] for record in records)))
    rows.append(("load average at the start", _span(r["load_average"] for r in records)))
    texts = [(label, "none" if value is None else str(value)) for label, value in rows]
    cells = "\n".join(f"<tr><td>{label}</td><td>{escape(text)}</td></tr>" for label, text in texts)
    summary = f"{first['device_name']}; torch {first['torch']}, commit {first['commit']}"
    return details(summary, f'<table class="facts">\n{cells}\n</table>\n')


def _span(values: Iterable[Any]) -> str:
    found = sorted(set(values))
    return str(found[0]) if len(found) == 1 else f"{found[0]} .. {found[-1]}"


def refused(records: Sequence[Record]) -> str:
    """Everyone without figures, and why, in full."""
    texts = suite.refusals(records)
    return "\n".join(f'<p class="refused">{escape(text)}</p>' for text in texts)


# ---- tables and figures -----------------------------------------------------------------------


def section_of(family: Family, records: Sequence[Record]) -> str:
    """How to read its figures; then, by machine, they and the tables; "" without lines."""
    if not records:
        return ""
    parts = []
    if family.heading is not None:
        parts.append(details(family.heading, explained.section(family.heading)))
    by_machine = grouped(records, lambda r: r["device_name"])
    for i, (machine, lines) in enumerate(by_machine.items()):
        if len(by_machine) > 1:
            parts.append(f"<h3>{escape(machine)}</h3>")
        for figure in figures.FIGURES:
            if figure.family == family.name:
                name = f"{figure.name.replace('.', '-')}{i}"
                parts.append(wide(inline_svg.inline(figure.draw, lines, name, figure.title)))
        for part, of_part in grouped(lines, lambda record: record.get("part", "")).items():
            parts += part_of(family, part, of_part)
    parts += [f"<p>{escape(note)}</p>" for note in family.notes(records)]
    return "\n".join(part for part in parts if part)


def part_of(family: Family, part: str, records: Sequence[Record]) -> list[str]:
    """The tables of one part below its name; long ones open on demand."""
    tables = family.tables(records)
    about = {b.name: f"{part}: {b.about}" for b in suite.BENCHMARKS}.get(f"solve.{part}", part)
    head = [f"<h4>{escape(about)}</h4>"] if part and tables else []
    if part == profiling.PART:
        head.append(details("What the parts are", meanings("part", PARTS)))
    return head + [_folded(table) for table in tables]


def _folded(table: Table) -> str:
    shown = wide(table_html(table))
    return shown if len(table.rows) <= SHORT else details(f"Table of {len(table.rows)} rows", shown)


def grouped(records: Iterable[Record], key: Callable[[Record], str]) -> dict[str, list[Record]]:
    """Lines by what `key` says of them, in the order in which it says so first."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(key(record), []).append(record)
    return found


def table_html(table: Table) -> str:
    """A table, cell by cell."""
    sides = ["" if left else ' class="right"' for left in table.left]
    heads = zip(sides, table.heads, strict=True)
    head = "".join(f"<th{side}>{escape(text)}</th>" for side, text in heads)
    lines = []
    for row in table.rows:
        names = [name for name, wanted in (("bold", row.strong), ("end", row.ends)) if wanted]
        cells = zip_longest(sides, row.cells, fillvalue="")
        content = "".join(f"<td{side}>{escape(text)}</td>" for side, text in cells)
        lines.append(f'<tr class="{" ".join(names)}">{content}</tr>')
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    body = "\n".join(lines)
    return f"<table>{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def wide(content: str) -> str:
    """A box that scrolls by itself."""
    return f'<div class="wide">\n{content}\n</div>' if content else ""


def details(summary: str, content: str) -> str:
    """Words that open on demand."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}</details>"


# ---- words ------------------------------------------------------------------------------------


def provider_list(records: Sequence[Record]) -> str:
    """Each provider among the lines, and what it is."""
    return meanings("provider", dict.fromkeys(record["provider"] for record in records))


def meanings(of: str, names: Iterable[str]) -> str:
    """What names mean."""
    texts = explained.meanings(of)
    rows = [
        f"<dt>{escape(name)}</dt><dd>{texts.get(name, 'No page in bench/ says.')}</dd>"
        for name in names
    ]
    return "<dl>\n" + "\n".join(rows) + "\n</dl>"


def commands(records: Sequence[Record]) -> str:
    """What to type in a clone: the stored command lines, by commit."""
    lines: dict[str, dict[str, None]] = {}
    for record in records:
        unknown = "python -m bench   # these lines do not hold the options of their run"
        command = (record.get("command") or unknown).replace("python ", ".venv/bin/python ", 1)
        lines.setdefault(record["commit"], {})[command] = None
    parts = [
        "\n".join([_checkout(commit), "make build", *found]) for commit, found in lines.items()
    ]
    return f"<pre>{escape((chr(10) * 2).join(parts))}</pre>"


def _checkout(commit: str) -> str:
    name = commit.removesuffix("-modified")
    if name == "unknown":
        return "# the commit is unknown: these rows were measured outside of a git clone"
    note = (
        "   # files differed from this commit when the rows were measured" if name != commit else ""
    )
    return f"git checkout {name}{note}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = Parser(prog="python -m bench.show.html", description=__doc__)
    parser.add_argument(
        "results", nargs="+", type=Path, help="files of JSON lines, or folders of them"
    )
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    chosen = parser.parse_args(arguments)
    records = stored.read_all(chosen.results)
    chosen.out.write_text(page(records), encoding="utf-8")
    print(f"written: {chosen.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
