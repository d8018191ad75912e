"""`python -m bench.html RESULTS.jsonl... --out report.html`: stored results as one file.

It holds the tables, the figures, the machine, what the providers are, and the commands that make
the lines again. It reads nothing else when it is looked at, and needs no network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from rich.table import Table

from bench import explained, inline_svg, plot, report
from bench.harness import Record
from bench.solver import figures, profiling
from bench.solver import report as solver_report
from bench.solver.attribution import PARTS

PAGE = Path(__file__).resolve().parent / "page.html"
SOLVER = "solver"
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

FIGURES = (
    (figures.draw_cost, "cost", "time, memory and gradient error against N"),
    (figures.draw_error, "error", "errors of the formats of the state against N"),
)


def page(records: Sequence[Record]) -> str:
    """The whole file."""
    if not records:
        raise ValueError("results: expected at least one line, got none; run `python -m bench`")
    ops = [record for record in records if record["benchmark"] != SOLVER]
    solver = [record for record in records if record["benchmark"] == SOLVER]
    sections = [
        ("machine", "The machine", environment(records)),
        ("refused", "Refused or skipped", refused(ops, solver)),
        ("ops", "The ops", ops_section(ops) if ops else ""),
        ("solver", "The solver", solver_section(solver) if solver else ""),
        ("providers", "What the providers are", provider_list(records)),
        ("again", "How to measure it again", commands(records)),
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
        title="what was measured", links=links, body=body, light=light, dark=dark
    )


# ---- the machine ------------------------------------------------------------------------------


def environment(records: Sequence[Record]) -> str:
    """One table for each machine and commit, and a mark where the machine had other work."""
    by_facts: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        by_facts.setdefault(tuple(record[name] for name in FACTS), []).append(record)
    return "\n".join(_machine(group) for group in by_facts.values())


def _machine(records: Sequence[Record]) -> str:
    rows = [(label, records[0][name]) for name, label in FACTS.items()]
    threads = {record["threads"] for record in records} - {None}
    rows.append(("threads", ", ".join(map(str, sorted(threads))) or "of the GPU"))
    rows.append(("date", _span(record["date"] for record in records)))
    rows.append(("load average at the start", _span(r["load_average"] for r in records)))
    texts = [(label, "none" if value is None else str(value)) for label, value in rows]
    cells = "\n".join(f"<tr><td>{label}</td><td>{escape(text)}</td></tr>" for label, text in texts)
    table = f'<table class="facts">\n{cells}\n</table>'
    busy = sum(record["load_average"] > report.BUSY for record in records)
    if not busy:
        return table
    return (
        f'{table}\n<p class="busy"><strong>Busy machine:</strong> other work was running when '
        f"{busy} of these {len(records)} lines were measured (load average above {report.BUSY} at "
        "the start of their run).</p>"
    )


def _span(values: Iterable[Any]) -> str:
    found = sorted(set(values))
    return str(found[0]) if len(found) == 1 else f"{found[0]} .. {found[-1]}"


def refused(ops: Sequence[Record], solver: Sequence[Record]) -> str:
    """Every refusal in full, and who was not there to be measured."""
    texts = report.refusals(ops) + solver_report.refusals(solver) + solver_report.absences(solver)
    return "\n".join(f'<p class="refused">{escape(text)}</p>' for text in texts)


# ---- tables and figures -----------------------------------------------------------------------


def ops_section(records: Sequence[Record]) -> str:
    """How to read them; then, by machine, versions and commit, the figure and the table."""
    how = "How to read the figures"
    parts = [details(how, explained.section(how))]
    for i, (heading, lines) in enumerate(grouped(records, report.heading).items()):
        figure = inline_svg.inline(plot.draw, lines, f"ops{i}", "the ops, in percent of copy_")
        table = table_html(report.table_of(lines))
        parts += [f"<h3>{escape(heading)}</h3>", wide(figure), wide(table)]
    return "\n".join(part for part in parts if part)


def grouped(records: Iterable[Record], key: Callable[[Record], str]) -> dict[str, list[Record]]:
    """Lines by what `key` says of them, in the order in which it says so first."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(key(record), []).append(record)
    return found


def solver_section(records: Sequence[Record]) -> str:
    """How to read them; then, by machine, the figures and one table for each part."""
    how = "How to read the solver's figures"
    parts = [details(how, explained.section(how))]
    measured = [record for record in records if not solver_report.unmeasured(record)]
    for i, (machine, lines) in enumerate(grouped(measured, _device_name).items()):
        parts.append(f"<h3>{escape(machine)}</h3>")
        for draw, name, title in FIGURES:
            parts.append(wide(inline_svg.inline(draw, lines, f"{name}{i}", title)))
        for part, of_part in grouped(lines, lambda record: record["part"]).items():
            if part == profiling.PART:
                parts.append(profile_section(of_part))
                continue
            make = solver_report.error_table if part == "error" else solver_report.cost_table
            parts += [f"<h4>{escape(part)}</h4>", wide(table_html(make(of_part)))]
    parts += [f"<p>{escape(line)}</p>" for line in solver_report.compile_times(measured)]
    if any(record["raises"] for record in measured):
        parts.append("<p>* check=True raises ReconstructionError here, and no gradient is had.</p>")
    return "\n".join(part for part in parts if part)


def profile_section(records: Sequence[Record]) -> str:
    """Where the time of a step went, and what the parts are."""
    tables = [wide(table_html(table)) for table in profiling.tables(records)]
    what = details("What the parts are", meanings("part", PARTS))
    return "\n".join(["<h4>where the time of a step went</h4>", what, *tables])


def _device_name(record: Record) -> str:
    return record["device_name"]


def table_html(table: Table) -> str:
    """A table of the terminal, cell by cell."""
    sides = [' class="right"' if column.justify == "right" else "" for column in table.columns]
    heads = zip(sides, table.columns, strict=True)
    head = "".join(f"<th{side}>{escape(str(column.header))}</th>" for side, column in heads)
    lines = []
    cells = zip(*(column.cells for column in table.columns), strict=True)
    for row, values in zip(table.rows, cells, strict=True):
        names = [name for name, wanted in (("bold", row.style), ("end", row.end_section)) if wanted]
        content = "".join(
            f"<td{side}>{escape(str(value))}</td>"
            for side, value in zip(sides, values, strict=True)
        )
        lines.append(f'<tr class="{" ".join(names)}">{content}</tr>')
    caption = f"<caption>{escape(str(table.caption))}</caption>" if table.caption else ""
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
        f"<dt>{escape(name)}</dt><dd>{texts.get(name, 'bench/README.md does not say.')}</dd>"
        for name in names
    ]
    return "<dl>\n" + "\n".join(rows) + "\n</dl>"


def commands(records: Sequence[Record]) -> str:
    """What to type: the stored command lines, by commit."""
    lines: dict[str, dict[str, None]] = {}
    for record in records:
        module = "bench.solver" if record["benchmark"] == SOLVER else "bench"
        unknown = f"python -m {module}   # these lines do not hold the options of their run"
        lines.setdefault(record["commit"], {})[record.get("command") or unknown] = None
    parts = []
    for commit, found in lines.items():
        name = commit.removesuffix("-modified")
        note = "   # and files that differed from it" if name != commit else ""
        parts.append("\n".join([f"git checkout {name}{note}", "make build", *found]))
    return f"<pre>{escape((chr(10) * 2).join(parts))}</pre>"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.html", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="files of JSON lines, in this order")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    chosen = parser.parse_args(arguments)
    records = [record for path in chosen.results for record in report.read(path)]
    chosen.out.write_text(page(records), encoding="utf-8")
    print(f"written: {chosen.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
