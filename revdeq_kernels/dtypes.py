"""Which dtypes go together, and the constants that several layers need: each stands here once.

By name, and without torch: the tools that compile kernels ahead of time have none.
"""

from __future__ import annotations

F_OF_STATE: dict[str, tuple[str, ...]] = {
    "float32": ("float32", "bfloat16", "float16"),
    "float64": ("float64", "float32", "bfloat16", "float16"),
    "bfloat16": ("bfloat16",),
    "float16": ("float16",),
}
"""The dtypes of f that each float state takes."""

F_OF_EXACT: tuple[str, ...] = ("float32", "bfloat16", "float16")
"""The dtypes of f that an exact (int32) state takes."""

SEED_OF_GRAD: dict[str, tuple[str, ...]] = {
    "float32": ("float32", "bfloat16", "float16"),
    "float64": ("float64",),
}
"""The dtypes of seed, which are those of f, that each grad takes; vjp is of these or float32."""

TRITON = {"float64": "fp64", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""What Triton calls the dtypes."""

EPSILON = 1e-5
"""Added to the norm of f in a relative residual, as the method's authors do."""

TOLERANCE: dict[str, float] = {
    "float64": 1e-3,
    "float32": 1e-3,
    "bfloat16": 2**-4,
    "float16": 2**-4,
}
"""How far a float state may come back from its start, relative to the largest number of its start
and end, before its gradient counts as wrong; an exact state has none."""

_TRITON, _WGMMA = {80: 64, 90: 128, 100: 128}, {90: 128}

WIDEST: dict[str, dict[str, dict[int, int]]] = {
    "triton": {
        "bfloat16": _TRITON,
        "float16": _TRITON,
        "float32": _TRITON | {80: 32, 100: 32},
    },
    "gluon": {"bfloat16": _WGMMA, "float16": _WGMMA, "float32": {80: 64, 90: 128, 100: 128}},
}
"""By implementation of the equilibrium cell and dtype of w: the compute capabilities for which its
kernels are compiled, and the most features that fit into shared memory and registers there without
a spill, by Triton 3.6 and 3.9; they were not run. Beyond them a thread spills on sm_80 up to 96
bytes of Triton's 128 features, and 24 of Gluon's in float32; of Triton's 64 in float32, where rows
halt, up to 136 on sm_80 and 56 on sm_100. On other GPUs shared memory does not hold what these keep
there."""
