"""How lines, machines and times are named, wherever they are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.core import stored
from bench.core.session import Record

SHORT_TYPES = {
    "float64": "fp64",
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
}
DISTURBED = "~"
"""Behind a time that was measured while other programs took more than half a core."""
# In a pass f tells these types: gradients are float32, the others have the type of f.
OF_A_PASS = ("grad_y", "grad_z", "vjp", "seed")


def op_label(record: Record) -> str:
    """The op, its variant where it has some, and beta where it matters to the arithmetic."""
    label = record["op"]
    if record.get("variant"):
        label += f" ({record['variant']})"
    exact = "int32" in list(record["dtypes"].values())[:1] and record["benchmark"] != "per_call"
    return label if record["beta"] is None or not exact else f"{label} beta {record['beta']:g}"


def types_label(record: Record) -> str:
    """The types in the order of the op's arguments, such as `fp32, f bf16, cast bf16`."""
    parts = []
    for role, name in record["dtypes"].items():
        if "f" in record["dtypes"] and role in OF_A_PASS:
            continue
        short = SHORT_TYPES.get(name, name)
        parts.append(short if not parts else f"{role} {short}")
    return ", ".join(parts)


def place_label(record: Record) -> str:
    """The size of the state and, on a CPU, the threads."""
    count = "s" if record["elements"] > 1 else ""
    size_mb = record["size_mb"]
    size = f"{record['elements']} element{count}" if size_mb is None else f"{size_mb:g} MiB"
    if record["threads"] is None or record["size_mb"] is None:
        return size
    return f"{size}, {record['threads']} thread{'s' if record['threads'] > 1 else ''}"


def case_labels(record: Record) -> tuple[str, str, str]:
    """What names a case in a table: op, types, place."""
    return op_label(record), types_label(record), place_label(record)


def in_unit(seconds: float, unit: str) -> str:
    """Three digits of a time in us or ms."""
    value = seconds * {"us": 1e6, "ms": 1e3}[unit]
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def seconds_cell(seconds: float) -> str:
    """A time in the unit that suits it."""
    unit = "us" if seconds < 1e-3 else "ms"
    return f"{in_unit(seconds, unit)} {unit}"


def time_cell(record: Record) -> str:
    """The median, marked where other work ran meanwhile."""
    return seconds_cell(record["p50_seconds"]) + (
        f" {DISTURBED}" if stored.disturbed(record) else ""
    )


def spread_cell(record: Record) -> str:
    """p20 .. p80, in the unit of the median."""
    unit = "us" if record["p50_seconds"] < 1e-3 else "ms"
    return " .. ".join(in_unit(record[name], unit) for name in ("p20_seconds", "p80_seconds"))


def in_mebibytes(count: int | None) -> str:
    """Three digits of a size."""
    if count is None:
        return ""
    size = count / 2**20
    return f"{size:.0f}" if size >= 100 else f"{size:.3g}"


def size_label(count: float) -> str:
    """A size in the unit that suits it: 512 KiB, 27 MiB, 1.5 GiB."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while count >= 1000 and power < len(units) - 1:
        count, power = count / 1024, power + 1
    return f"{count:.0f} {units[power]}" if count >= 100 else f"{count:.3g} {units[power]}"


def heading(record: Record) -> str:
    """The machine and the versions that figures are read with."""
    cache = record["cache_bytes"]
    cache_text = "unknown" if cache is None else f"{cache / 2**20:g} MiB"
    return (
        f"{record['device_name']} (last cache {cache_text}); python {record['python']}, "
        f"torch {record['torch']}, triton {record['triton']}, "
        f"revdeq-kernels {record['revdeq_kernels']}, commit {record['commit']}, "
        f"{record['date'][:10]}"
    )


def groups(records: Iterable[Record]) -> list[list[Record]]:
    """Records that belong side by side: the providers of one case at one size and thread count."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        found.setdefault((record["benchmark"], *case_labels(record)), []).append(record)
    return list(found.values())


def provenance(records: Sequence[Record]) -> str:
    """The machine, whether it had other work, threads, commits and days: one line."""
    first = records[0]
    busy = ", busy" if any(map(stored.busy, records)) else ""
    threads = sorted({record["threads"] for record in records} - {None})
    counts = " and ".join(str(count) for count in threads)
    commits = ", ".join(sorted({record["commit"] for record in records}))
    days = ", ".join(sorted({record["date"][:10] for record in records}))
    of_threads = f"; {counts} thread{'s' if threads != [1] else ''}" if threads else ""
    where = f"{first['device_name']}{busy}{of_threads}"
    return f"{where}; torch {first['torch']}, commit {commits}, {days}"
