"""The equilibrium cell's time against its rows, and the roofline.

`forward` is a solve under no_grad, `train` one with the gradients of u, W and z0.
The roofline is the larger of two times: the bytes that one launch moves (see linear_cell_forward)
at the speed of `copy_`, and its multiplications at that of a large matmul in W's dtype, both
measured in the same run. The issue bound of a kernel is the time in which a GPU issues its
instructions (issue.py). A provider whose results are off is not timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.cell import issue
from bench.cell.methods import ACT, BETA, call_of, refusal, solves
from bench.core import ceilings, labels, machine, timing
from bench.core.case import Kind
from bench.core.ceilings import Ceilings
from bench.core.session import Bar, Record, Session
from bench.core.table import PROVIDER, Column, Family, listing
from revdeq_kernels import digit_bytes
from revdeq_kernels.core import first_use

NAME = "cell"
PARTS = ("forward", "train")
DTYPE = torch.bfloat16
# torch.compile takes time that grows with the steps, which it unrolls.
STEPS = {"quick": (2,), "default": (4,), "full": (8,)}
FEATURES = (64, 128)
ALL_ROWS = {"cuda": tuple(2**k for k in range(10, 21)), "cpu": tuple(2**k for k in range(10, 14))}
FEW_ROWS = {"cuda": (2**10, 2**14, 2**18), "cpu": (2**12,)}
QUICK_ROWS = (64,)
KINDS: dict[str, Kind] = {"eager loop": "alternative", "compiled loop": "alternative"}


def work(part: str, u: Tensor, z0: Tensor, steps: int) -> tuple[int, int]:
    """Bytes and multiply-adds, counted as two operations, of one launch that does the part."""
    digits = digit_bytes(z0.numel(), BETA) * 2 * steps
    forward = u.nbytes + z0.nbytes + 2 * z0.nbytes + 2 * z0.nbytes + digits
    operations = 2 * steps * 2 * z0.numel() * z0.shape[1]
    if part == "forward":
        return forward, operations
    back = 4 * z0.nbytes + 2 * u.nbytes + 2 * z0.nbytes + digits
    return forward + back, operations + 3 * operations  # W s again, g W, and g s for W


def floor(moved: int, operations: int, dtype: torch.dtype, ceilings: Ceilings) -> float:
    """Seconds that the slower of both takes at the ceilings: the roofline."""
    rate = ceilings.matmul[str(dtype).removeprefix("torch.")]
    return max(moved / ceilings.copy, operations / rate)


def issue_bound(size: Size, provider: str, device: torch.device) -> float | None:
    """Seconds in which the device issues the instructions of a provider's kernels, if known."""
    clocks = machine.most_clocks(device)
    if clocks is None:
        return None
    architecture = first_use.architecture(device)
    count = issue.per_element(provider, size.part, size.features, architecture)
    if count is None:
        return None
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    elements = size.rows * size.features
    return issue.seconds(count, elements, size.steps, issue.rate(processors, clocks))


@dataclass(frozen=True)
class Size:
    """One solve: what is done of it, features and rows of its state, its steps."""

    part: str
    features: int
    rows: int
    steps: int


def sizes(session: Session) -> list[Size]:
    """What the run measures."""
    chosen = session.chosen
    on_gpu, full = session.device.type == "cuda", session.tier == "full"
    rows = ALL_ROWS["cuda" if on_gpu else "cpu"] if full else FEW_ROWS["cuda" if on_gpu else "cpu"]
    return [
        Size(part, features, count, steps)
        for features in chosen.features or (FEATURES if full else FEATURES[:1])
        for part in PARTS
        for steps in chosen.depths or STEPS[session.tier]
        for count in chosen.rows or (QUICK_ROWS if session.tier == "quick" else rows)
    ]


def run(session: Session, bar: Bar) -> Iterator[Record]:
    """One line for each provider and size."""
    session.use_threads()
    limits = ceilings.of(session)
    found = sizes(session)
    bar.total(len(found))
    for size in found:
        bar.at(f"{size.part}, {size.rows} rows")
        yield from measure(size, session, limits)
        bar.advance(1)


def measure(size: Size, session: Session, limits: Ceilings) -> Iterator[Record]:
    """One line for each provider, their samples taken in turn."""
    device, d = session.device, size.features
    w = (torch.randn(d, d, device=device) * 0.4 / d**0.5).to(DTYPE)
    u, z0 = torch.randn(size.rows, d, device=device), torch.zeros(size.rows, d, device=device)
    tensors = (u.to(DTYPE), w, z0)
    torch.compiler.reset()
    moved, operations = work(size.part, tensors[0], z0, size.steps)
    about = about_of(size, session.threads) | {"bytes": moved, "operations": operations}
    least = about["roofline_seconds"] = floor(moved, operations, DTYPE, limits)
    contenders: list[tuple[timing.Contender, Record]] = []
    for name, solve_ in solves(w).items():
        if not session.wants_provider(name):
            continue
        kind = KINDS.get(name, "revdeq")
        bound = issue_bound(size, name, device)
        record = about | {"provider": name, "kind": kind, "issue_seconds": bound}
        reason = refusal(size.part, solve_, tensors, size.steps)
        if reason is not None:
            yield record | {"refused": reason}
            continue
        call = call_of(size.part, solve_, tensors, size.steps)
        contenders.append((timing.alone(name, kind, call), record))
    timing.race(
        [contender for contender, _ in contenders],
        timing.CLOCKS[device.type],
        rounds=session.samples(5),
        minimum=session.sample_seconds,
    )
    for contender, record in contenders:
        if contender.failure is not None:
            yield record | {"refused": contender.failure}
            continue
        times = timing.quantiles(contender.samples)
        seconds, bound = times["p50_seconds"], record["issue_seconds"]
        yield (
            record
            | times
            | {
                "samples": len(contender.samples),
                "gb_per_second": moved / seconds * 1e-9,
                "tflop_per_second": operations / seconds * 1e-12,
                "share_of_roofline": least / seconds,
                "share_of_issue": bound and bound / seconds,
            }
        )


def about_of(size: Size, threads: int | None) -> Record:
    """What a line says of any figure."""
    return {
        "benchmark": NAME,
        "part": size.part,
        "op": "linear cell",
        "features": size.features,
        "rows": size.rows,
        "elements": size.rows * size.features,
        "steps": size.steps,
        "beta": BETA,
        "act": ACT,
        "dtypes": {"u": str(DTYPE).removeprefix("torch.")},
        "threads": threads,
        "refused": None,
    }


# ---- how its lines are shown ------------------------------------------------------------------


def case_label(record: Record) -> str:
    """The part, the features and the steps."""
    return f"{record['part']}, {record['features']} features, N = {record['steps']}"


def roofline(record: Record) -> str:
    """As a time."""
    return labels.seconds_cell(record["roofline_seconds"])


def issued(record: Record) -> str:
    """The issue bound as a time, and its share of the time; nothing where none is known."""
    bound = record.get("issue_seconds")
    return f"{labels.seconds_cell(bound)}, {record['share_of_issue']:.1%}" if bound else ""


KEYS = (Column("case", case_label, left=True), Column("rows", lambda record: str(record["rows"])))
COLUMNS = (
    PROVIDER,
    Column("time", labels.time_cell),
    Column("p20 .. p80", labels.spread_cell),
    Column("roofline", roofline, always=True),
    Column("of the roofline", lambda record: f"{record['share_of_roofline']:.1%}"),
    Column("issue bound", issued),
)
FAMILY = Family(
    NAME,
    "The equilibrium cell",
    lambda record: f"{case_label(record)}, {record['rows']} rows",
    lambda records: [
        listing(records, KEYS, COLUMNS, missing=lambda r: "refused" if r["refused"] else "")
    ],
    heading="How to read the cell's figures",
    yardstick="eager loop",
)
