"""Detect whether a CUDA graph is being captured on any device."""

from __future__ import annotations

import torch


def capturing(device: torch.device) -> bool:
    """Whether work sent to `device` now would be captured in a CUDA graph, or break a capture.

    Checks the current stream of the current device as well as that of `device`: a synchronization
    or an allocation on any device could invalidate a capture.
    """
    if device.type != "cuda":
        return False
    if torch.cuda.is_current_stream_capturing():
        return True
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()
