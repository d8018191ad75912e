"""The peak memory of a call, as counted by the allocator."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The peak number of tensor bytes allocated since `call` began.

    Memory allocated before does not count. What `call` returns does: it is released afterwards.
    """
    gc.collect()
    return _peak_on_cuda(call, device) if device.type == "cuda" else _peak_on_cpu(call)


def _peak_on_cuda(call: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del result
    return peak


def _peak_on_cpu(call: Callable[[], object]) -> int:
    """From the allocator's reports to the profiler: torch has no memory counters for a CPU.

    The reports include allocations inside ops, which inspecting tensors would miss.
    """
    # Above the level of the two lines that the profiler prints in every session.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    session = profiler.profiler
    assert session is not None and session.kineto_results is not None
    sizes: dict[int, int] = {}
    held = peak = 0
    for _, address, size in sorted(_reports(session.kineto_results.experimental_event_tree())):
        if size > 0:
            sizes[address] = size
            held += size
            peak = max(peak, held)
        else:
            # Memory allocated before the call has no start here, so its release does not count.
            held -= sizes.pop(address, 0)
    return peak


def _reports(events: Iterable[Any]) -> Iterator[tuple[int, int, int]]:
    """Time, address and bytes of every allocation; negative bytes for a release."""
    left = list(events)
    while left:
        event = left.pop()
        left.extend(event.children)
        if event.tag == _EventType.Allocation:
            fields = event.extra_fields
            yield event.start_time_ns, fields.ptr, fields.alloc_size
