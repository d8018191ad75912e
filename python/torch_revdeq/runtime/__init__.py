"""Copies to the host, deferred checks, CUDA graphs, torch.func, profiler scopes."""

from __future__ import annotations
