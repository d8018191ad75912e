"""The facts stored with every row: device, cache, versions, commit, date."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

import revdeq_kernels

ROOT = Path(__file__).resolve().parents[2]


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's model and the number of cores this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_model()}, {usable_cores()} cores"


def _cpu_model() -> str:
    try:
        description = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except FileNotFoundError:
        return platform.processor() or platform.machine()
    model = re.search(r"^model name\s*:\s*(.+)$", description, re.MULTILINE)
    return model.group(1).strip() if model else platform.machine()


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_bytes(device: torch.device) -> int | None:
    """Size of the last cache before memory: a GPU's L2, a CPU's largest cache; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [
        _parse_size(path.read_text(encoding="utf-8"))
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    ]
    return max(sizes, default=None)


def most_clocks(device: torch.device) -> float | None:
    """The clocks a second that a GPU's processors run at, at most; None if nobody says."""
    if device.type != "cuda":
        return None
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    command = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(
            [*command, f"--id=GPU-{uuid}"], check=True, capture_output=True, text=True, timeout=10
        )
        return float(found.stdout) * 1e6
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _parse_size(text: str) -> int:
    """Bytes of a size such as `32768K` or `480M`."""
    size = text.strip()
    factors = {"K": 2**10, "M": 2**20, "G": 2**30}
    return int(size.rstrip("KMG")) * factors.get(size[-1], 1)


def git_commit() -> str:
    """The commit of the checkout, marked where files differ from it; "unknown" outside of git."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return f"{commit}-modified" if _git("status", "--porcelain") else commit
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def version_of(package: str) -> str | None:
    """The installed version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def command_line(module: str, arguments: Sequence[str], places: Sequence[str]) -> str:
    """The command, without the options of `places`: paths of this machine say nothing elsewhere."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        name = argument.split("=", 1)[0]
        if not skip and name not in places:
            kept.append(argument)
        skip = argument in places
    return shlex.join(["python", "-m", module, *kept])


def facts(device: torch.device) -> dict[str, str | int | float | None]:
    """What every stored line of this run carries."""
    return {
        "device": device.type,
        "device_name": device_name(device),
        "cache_bytes": cache_bytes(device),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "revdeq_kernels": revdeq_kernels.__version__,
        "commit": git_commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
