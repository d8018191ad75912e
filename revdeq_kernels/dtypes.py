"""Supported dtype combinations, and the constants that several layers share.

Dtypes are given by name and torch is not imported, because the tools that compile kernels ahead
of time run without it.
"""

from __future__ import annotations

F_OF_STATE: dict[str, tuple[str, ...]] = {
    "float32": ("float32", "bfloat16", "float16"),
    "float64": ("float64", "float32", "bfloat16", "float16"),
    "bfloat16": ("bfloat16",),
    "float16": ("float16",),
}
"""The dtypes of f that each float state supports."""

F_OF_EXACT: tuple[str, ...] = ("float32", "bfloat16", "float16")
"""The dtypes of f that an exact (int32) state supports."""

SEED_OF_GRAD: dict[str, tuple[str, ...]] = {
    "float32": ("float32", "bfloat16", "float16"),
    "float64": ("float64",),
}
"""The dtypes of seed (the dtype of f) that each grad supports; vjp has one of these or float32."""

TRITON = {"float64": "fp64", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""Triton's names of the dtypes."""

EPSILON = 1e-5
"""Added to the norm of f in a relative residual, as the method's authors do."""

TOLERANCE: dict[str, float] = {
    "float64": 1e-3,
    "float32": 1e-3,
    "bfloat16": 2**-4,
    "float16": 2**-4,
}
"""Largest error of a reconstructed float initial state, relative to the largest magnitude in the
initial and final states, before its gradient counts as wrong. Exact states have no tolerance."""

_TRITON, _WGMMA = {80: 64, 90: 128, 100: 128}, {90: 128}

WIDEST: dict[str, dict[str, dict[int, int]]] = {
    "triton": {
        "bfloat16": _TRITON,
        "float16": _TRITON,
        "float32": _TRITON | {80: 32, 100: 32},
    },
    "gluon": {"bfloat16": _WGMMA, "float16": _WGMMA, "float32": {80: 64, 90: 128, 100: 128}},
}
"""By implementation of the equilibrium cell and dtype of w: the compute capabilities that its
kernels are compiled for, and the most features that fit into registers and shared memory there
without spilling, as compiled by Triton 3.6 and 3.9 (the kernels were not run). Larger cells spill:
per thread on sm_80, up to 96 bytes with Triton and 128 features, and 24 with Gluon in float32;
with Triton, 64 features, float32, and rows that halt, up to 136 on sm_80 and 56 on sm_100. Other
GPUs do not have enough shared memory for these kernels."""
