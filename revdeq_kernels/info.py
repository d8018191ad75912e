"""Report what is installed, what was built, and which backends can run.

Run it with ``python -m revdeq_kernels.info``.
"""

from __future__ import annotations

import importlib.metadata
import platform
from datetime import datetime, timezone

import torch

from . import __version__
from .core import backends, first_use, libraries
from .core.op import OPS


def report() -> str:
    """The report as text, to be pasted into a bug report."""
    return "\n".join(
        [
            f"revdeq_kernels {__version__}, {datetime.now(timezone.utc):%Y-%m-%d}",
            *_versions(),
            "",
            *_build(),
            "",
            *_backends(),
            "",
            *_validation(),
        ]
    )


def _versions() -> list[str]:
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "not installed"
    lines = [
        f"  python   {platform.python_version()} on {platform.platform()}",
        f"  torch    {torch.__version__} (CUDA {torch.version.cuda}, ROCm {torch.version.hip})",
        f"  triton   {triton}",
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            name, arch = torch.cuda.get_device_name(index), _architecture(index)
            lines.append(f"  cuda:{index}   {name}, {arch}")
    return lines


def _build() -> list[str]:
    if reason := backends.why_not("cpu"):
        return [f"build: {reason}"]
    facts = libraries.build_info()
    facts["cpu_instruction_set"] = libraries.cpu_instruction_set()
    facts["cpu_bfloat16_cell"] = libraries.cpu_bfloat16_cell()
    target = int(facts["torch_target_version"], 16)
    facts["torch_target_version"] = f"{target >> 56}.{target >> 48 & 255} (and later)"
    return ["build:", *(f"  {name:22}{value or '-'}" for name, value in facts.items())]


def _backends() -> list[str]:
    chosen = backends.chosen or "by device"
    lines = [f"backends (choice: {chosen}; {backends.ENVIRONMENT} or revdeq_kernels.backend()):"]
    lines += [f"  {name:11}{backends.why_not(name) or 'can run'}" for name in backends.NAMES]
    return lines


def _validation() -> list[str]:
    lines = ["GPU kernels validated on hardware (others are checked on first use):"]
    for (backend, architecture), ops in sorted(first_use.VALIDATED.items()):
        missing = sorted(set(OPS) - ops)
        lines.append(f"  {backend} {architecture}: " + ("all" if not missing else f"not {missing}"))
    return lines if first_use.VALIDATED else [*lines, "  none yet"]


def _architecture(index: int) -> str:
    return first_use.architecture(torch.device("cuda", index))


if __name__ == "__main__":
    print(report())
