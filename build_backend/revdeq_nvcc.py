"""The CUDA compiler: its path, its version, and the architectures to build for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from setuptools.errors import CompileError

DEFAULT_ARCHS = ("8.0", "9.0a", "10.0+PTX")  # PTX: for future GPUs


@dataclass(frozen=True)
class Nvcc:
    """One nvcc: its path, its CUDA version ("13.0") and the architectures to build for ("9.0a")."""

    path: str
    version: str
    archs: tuple[str, ...]

    @classmethod
    def found_at(cls, path: str) -> Nvcc:
        """Query the version of the nvcc at `path`, and choose the architectures."""

        def ask(flag: str) -> str:
            return subprocess.run([path, flag], check=True, capture_output=True, text=True).stdout

        version = re.search(r"release (\d+\.\d+)", ask("--version"))
        if version is None:
            raise CompileError(
                f"`{path} --version` prints no release; set CUDA_HOME to use another nvcc"
            )
        known = set(re.findall(r"compute_(\d+)", ask("--list-gpu-arch")))
        archs = choose_archs(os.environ.get("TORCH_CUDA_ARCH_LIST", ""), known)
        return cls(path, version[1], tuple(archs))

    def gencode(self) -> list[str]:
        """The -gencode flags, for both the compile and the link command."""
        flags = []
        for arch in self.archs:
            number = arch.removesuffix("+PTX").replace(".", "")
            kinds = ("sm", "compute") if arch.endswith("+PTX") else ("sm",)
            flags += [f"-gencode=arch=compute_{number},code={kind}_{number}" for kind in kinds]
        return flags


def find_nvcc() -> Nvcc | None:
    """The nvcc to build with, or None for a build without CUDA."""
    wanted = os.environ.get("REVDEQ_BUILD_CUDA") or "auto"
    if wanted not in ("auto", "0", "1"):
        raise CompileError(f"REVDEQ_BUILD_CUDA: expected auto, 0 or 1, got {wanted!r}")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    folders = [f"{home}/bin"] if home else [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    path = shutil.which("nvcc", path=os.pathsep.join(folders))
    if path is None and wanted == "1":
        raise CompileError(
            f"REVDEQ_BUILD_CUDA=1, but there is no nvcc in {os.pathsep.join(folders)}: install the "
            "CUDA toolkit and set CUDA_HOME, or build only for CPUs with REVDEQ_BUILD_CUDA=0"
        )
    return Nvcc.found_at(path) if path else None


def choose_archs(asked: str, known: set[str]) -> list[str]:
    """The entries of TORCH_CUDA_ARCH_LIST, or the defaults that this nvcc supports."""
    if not asked.strip():
        return [arch for arch in DEFAULT_ARCHS if re.sub(r"\D", "", arch) in known]
    archs = [arch for arch in re.split(r"[;\s]+", asked) if arch]
    for arch in archs:
        found = re.fullmatch(r"(\d+)\.(\d)[af]?(\+PTX)?", arch)
        if found is None or found[1] + found[2] not in known:
            raise CompileError(
                "TORCH_CUDA_ARCH_LIST: expected entries such as '8.0;9.0a;10.0+PTX' that this nvcc "
                f"supports ({' '.join(sorted(known, key=int))}), got {arch!r}"
            )
    return archs
