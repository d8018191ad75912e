"""Copies to the host, checks that wait for a device, CUDA graphs, torch.func, named scopes."""

from __future__ import annotations
