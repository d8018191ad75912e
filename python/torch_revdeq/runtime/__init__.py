"""Copies to the host, checks that wait for a device, CUDA graphs, transforms of torch.func."""

from __future__ import annotations
