"""Whether a failure has cost a process its GPU: then whatever it tries next fails as well."""

from __future__ import annotations

import sys


def is_spoiled() -> bool:
    """Whether this process cannot use its GPU any more, as after an access outside of memory."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
