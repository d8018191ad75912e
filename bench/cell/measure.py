"""The equilibrium cell's time against its rows and features, and the roofline.

`forward` is a solve under no_grad, `train` one with the gradients of the parameters.
The roofline is the larger of two times: the bytes that one launch moves (see linear_cell_forward)
at the speed of `copy_`, and its multiplications at that of a large matmul in W's dtype, or of
multiply-adds in float32 where these are faster, all measured in the same run. The issue bound of a
kernel is the time in which a GPU issues its instructions (issue.py). A provider whose results are
off is not timed. `memory.py` has the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.cell import issue
from bench.cell.methods import BETA, call_of, refusal, ways
from bench.cell.sizes import Size, about_of, sizes
from bench.core import ceilings, machine, timing
from bench.core.ceilings import Ceilings
from bench.core.session import Bar, Record, Session
from revdeq_kernels import digit_bytes
from revdeq_kernels.core import first_use


def work(size: Size) -> tuple[int, int]:
    """Bytes and operations of one launch that does the part: each multiply-add is two operations.

    The launch is handed U x + b, and begins at zero, of which it needs no products.
    """
    elements = size.rows * size.features
    states, u = 4 * elements, size.dtype.itemsize * elements
    digits = digit_bytes(elements, BETA) * 2 * size.steps
    forward = u + states + 2 * states + 2 * states + digits
    operations = (2 * size.steps - 1) * 2 * elements * size.features
    if size.part == "forward":
        return forward, operations
    back = 4 * states + 2 * u + 2 * states + digits
    return forward + back, operations + 3 * operations  # W s again, g W, and g s for W


def floor(moved: int, operations: int, dtype: torch.dtype, ceilings: Ceilings) -> float:
    """Seconds that the slower of both takes at the ceilings: the roofline."""
    rate = max(ceilings.matmul[str(dtype).removeprefix("torch.")], ceilings.fma or 0.0)
    return max(moved / ceilings.copy, operations / rate)


def issue_bound(size: Size, provider: str, device: torch.device) -> float | None:
    """Seconds in which the device issues the instructions of a provider's kernels, if known."""
    clocks = machine.most_clocks(device)
    if clocks is None or size.dtype != torch.bfloat16:
        return None
    architecture = first_use.architecture(device)
    count = issue.per_element(provider, size.part, size.features, architecture)
    if count is None:
        return None
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    elements = size.rows * size.features
    return issue.seconds(count, elements, size.steps, issue.rate(processors, clocks))


def run(session: Session, bar: Bar) -> Iterator[Record]:
    """One line for each provider and size."""
    found = sizes(session)
    bar.total(len(found))
    for size in found:
        bar.at(f"{size.part}, {size.features} features, {size.rows} rows")
        yield from measure(size, session, ceilings.of(session, size.threads))
        bar.advance(1)


def measure(size: Size, session: Session, limits: Ceilings) -> Iterator[Record]:
    """One line for each provider, their samples taken in turn."""
    if size.threads is not None:
        torch.set_num_threads(size.threads)
    torch.compiler.reset()  # compiled code keeps the number of threads
    device = session.device
    problem = size.problem(device)
    moved, operations = work(size)
    least = floor(moved, operations, size.dtype, limits)
    about = about_of(size) | {"bytes": moved, "roofline_seconds": least}
    contenders: list[tuple[timing.Contender, Record]] = []
    for way in ways(problem):
        if not session.wants_provider(way.name) or size.part not in way.parts:
            continue
        record = about | {
            "provider": way.name,
            "kind": way.kind,
            "operations": way.operations(size.part, problem),
            "issue_seconds": issue_bound(size, way.name, device),
        }
        reason = refusal(size.part, way, problem)
        if reason is not None:
            yield record | {"refused": reason}
            continue
        call = call_of(size.part, way.solve, problem)
        contenders.append((timing.alone(way.name, way.kind, call), record))
    timing.race(
        [contender for contender, _ in contenders],
        timing.CLOCKS[device.type],
        rounds=session.samples(5),
        minimum=session.sample_seconds,
    )
    for contender, record in contenders:
        if contender.failure is None:
            yield record | _figures(contender, record, limits)
        else:
            yield record | {"refused": contender.failure}


def _figures(contender: timing.Contender, record: Record, limits: Ceilings) -> Record:
    """The times, and what they come to beside the ceilings."""
    times = timing.quantiles(contender.samples)
    seconds, bound = times["p50_seconds"], record["issue_seconds"]
    rate = record["operations"] / seconds
    return {
        **times,
        "fastest_seconds": min(contender.samples),
        "samples": len(contender.samples),
        "gb_per_second": record["bytes"] / seconds * 1e-9,
        "tflop_per_second": rate * 1e-12,
        "share_of_fma": limits.fma and rate / limits.fma,
        "share_of_roofline": record["roofline_seconds"] / seconds,
        "share_of_issue": bound and bound / seconds,
    }
