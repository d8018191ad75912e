"""The peak memory of a call, as the allocator or the system counts it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from torch_revdeq.runtime.peak_memory import peak_bytes

__all__ = ["peak_bytes", "resident_bytes"]


def resident_bytes(call: Callable[[], object]) -> int | None:
    """By how much the most memory that this process ever had exceeds what it has before `call`.

    With what does not come from torch's allocator. It says what `call` needs where the process is
    fresh, and has run the same code before on little data. None where the system does not tell.
    """
    before = _of_this_process("VmRSS")
    result = call()
    del result
    most = _of_this_process("VmHWM")
    return None if before is None or most is None else most - before


def _of_this_process(name: str) -> int | None:
    """Bytes, as Linux counts them; not by getrusage, which begins with those of the parent."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    return None if found is None else int(found[1]) * 1024
