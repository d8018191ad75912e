"""`python -m bench.table RESULTS.jsonl`: stored results as the markdown table of the README.

With `--write README.md` it replaces what stands between `<!-- bench:begin -->` and
`<!-- bench:end -->` there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.harness import Record

BEGIN = "<!-- bench:begin -->"
END = "<!-- bench:end -->"
COLUMNS = ("op", "types", "size, threads", "provider", "time", "GB/s", "of `copy_`", "to best")


def markdown(records: Sequence[Record]) -> str:
    """One table per machine and commit, each under the line that names them."""
    if not records:
        raise ValueError("results: expected at least one line, got none; run `python -m bench`")
    by_machine: dict[str, list[Record]] = {}
    for record in records:
        by_machine.setdefault(report.heading(record), []).append(record)
    parts = [f"{heading}\n\n{_table(lines)}" for heading, lines in by_machine.items()]
    return "\n\n".join(parts)


def _table(records: Sequence[Record]) -> str:
    rows = [COLUMNS, ("---",) * 4 + ("---:",) * 4]
    for group in report.groups(records):
        for position, record in enumerate(group):
            op, types, place = report.case_labels(record)
            case = (f"`{op}`", types, place) if position == 0 else ("", "", "")
            time, _, rate, share, ratio = report.figures(record)
            name = record["provider"]
            shown = f"**{name}**" if record["kind"] == "revdeq" else name
            rows.append((*case, shown, time, rate, share, ratio))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def replace_between_markers(text: str, table: str) -> str:
    """`text` with what stands between the two markers replaced by `table`."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"--write: expected one `{BEGIN}` and after it one `{END}` in the file")
    before = text[: text.index(BEGIN) + len(BEGIN)]
    after = text[text.index(END) :]
    return f"{before}\n{table}\n{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument("results", type=Path, help="JSON lines written by `python -m bench`")
    parser.add_argument("--write", type=Path, help="file whose marked part is replaced")
    parser.add_argument("--only", nargs="*", default=[], help="parts of benchmark.op to keep")
    parser.add_argument("--threads", type=int, help="keep the rows of this thread count")
    chosen = parser.parse_args(arguments)
    records = [
        record
        for record in report.read(chosen.results)
        if not chosen.only
        or any(part in f"{record['benchmark']}.{record['op']}" for part in chosen.only)
    ]
    if chosen.threads is not None:
        records = [record for record in records if record["threads"] == chosen.threads]
    table = markdown(records)
    if chosen.write is None:
        print(table)
    else:
        text = chosen.write.read_text(encoding="utf-8")
        chosen.write.write_text(replace_between_markers(text, table), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
