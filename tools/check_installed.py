"""Check an installed package: `check_installed.py FOLDER ARCHS`, run from outside the project.

FOLDER must contain the package that is imported. ARCHS are the CUDA architectures that it must be
built for, such as "8.0;9.0a"; empty for a build without CUDA.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import torch

import revdeq_kernels
import torch_revdeq
import torch_revdeq.models
from revdeq_kernels.core import libraries


def main(folder: str, archs: str) -> None:
    for module in (revdeq_kernels, torch_revdeq, torch_revdeq.models):
        path = Path(str(module.__file__)).resolve()
        expect(path.is_relative_to(Path(folder).resolve()), f"imported {path}, not from {folder}")
    built = libraries.build_info()
    versions = {revdeq_kernels.__version__, built["version"]}
    versions.add(importlib.metadata.version("revdeq-kernels"))
    expect(len(versions) == 1, f"versions differ: {versions}")
    expect(built["cuda_archs"] == archs, f"built for {built['cuda_archs']!r}, not for {archs!r}")
    cuda = libraries.CUDA
    expect(cuda.exists() == bool(archs), f"{cuda} is there or missing against {archs!r}")
    state = revdeq_kernels.update_(torch.ones(1000), torch.full((1000,), 3.0), 0.25)
    expect(torch.equal(state, torch.full((1000,), 1.5)), f"update_ gave {state[0]}, not 1.5")
    weight = torch.full((4,), 0.5, requires_grad=True)
    z = torch_revdeq.solve(lambda z: z * 0.5 + weight, torch.zeros(4), max_steps=30).z
    z.sum().backward()
    expect(torch.allclose(z, torch.ones(4), atol=1e-3), f"solve gave {z[0].item()}, not 1")
    grown = weight.grad is not None and bool(weight.grad[0] > 1.9)
    expect(grown, f"solve gave gradient {weight.grad}")
    print(f"revdeq-kernels {versions.pop()} in {folder}: {archs or 'CPU only'}: works")


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        sys.exit(f"check_installed: {otherwise}")


if __name__ == "__main__":
    main(*sys.argv[1:])
