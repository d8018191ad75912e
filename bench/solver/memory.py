"""The most bytes that a call holds at once, as the allocator counts them."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that were allocated at once since `call` began.

    What was there before does not count. What `call` returns does: it is let go of after the count.
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
    """From the allocator's reports to the profiler: torch keeps no counters for a CPU.

    The reports cover what ops allocate inside, which a look at tensors would miss.
    """
    # Above the level of two lines that the profiler prints for every session.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    session = profiler.profiler
    assert session is not None and session.kineto_results is not None
    reports = [
        (event.start_ns(), event.nbytes())  # type: ignore[attr-defined]
        for event in session.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = peak = 0
    for _, change in sorted(reports, key=lambda report: report[0]):
        held += change
        peak = max(peak, held)
    return peak
