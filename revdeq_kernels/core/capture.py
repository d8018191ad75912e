"""Whether a CUDA graph is being captured, on whichever device."""

from __future__ import annotations

import torch


def capturing(device: torch.device) -> bool:
    """Whether what is sent to `device` now goes into a CUDA graph, or would break a capture.

    True where the current stream of `device` is captured, which need not be the current device, and
    where that of the current device is: a wait or an allocation anywhere could end its capture.
    """
    if device.type != "cuda":
        return False
    if torch.cuda.is_current_stream_capturing():
        return True
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()
