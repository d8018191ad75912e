"""The libraries import only symbols of the stable ABI of torch 2.11 from torch, and not Python."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import revdeq_kernels

PACKAGE = Path(revdeq_kernels.__file__).parent
ALLOWED = set(Path(__file__).with_name("stable_abi_2_11.txt").read_text().split())


CUDA_LIBRARY = PACKAGE / "librevdeq_cuda.so"
TORCH = Path(torch.__file__).parent / "lib"
needs_readelf = pytest.mark.skipif(shutil.which("readelf") is None, reason="needs binutils")


def needed(library: Path) -> set[str]:
    """The libraries that it is loaded with, by their own names."""
    command = ["readelf", "--dynamic", str(library)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", listing))


@needs_readelf
@pytest.mark.skipif(not CUDA_LIBRARY.exists(), reason="was built without CUDA")
def test_the_cuda_library_brings_torch_and_the_runtime_of_cuda_in_itself() -> None:
    names = needed(CUDA_LIBRARY)
    assert "libtorch.so" in names
    assert not any("cudart" in name or "torch_cpu" in name for name in names)


@needs_readelf
@pytest.mark.skipif(torch.version.cuda is None, reason="needs a torch with CUDA")
def test_torch_brings_its_cuda_library() -> None:
    """Where librevdeq_cuda.so finds the current stream and the errors of launches."""
    assert "libtorch_cuda.so" in needed(TORCH / "libtorch.so")


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm, of binutils")
def test_imported_symbols() -> None:
    libraries = list(PACKAGE.glob("*.so"))
    assert PACKAGE / "librevdeq_cpu.so" in libraries
    for library in libraries:
        command = ["nm", "--dynamic", "--undefined-only", str(library)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        symbols = {line.split()[-1] for line in listing.splitlines()}
        ours = {name for name in symbols if re.match(r"(aoti_)?torch_", name)}
        assert "torch_library_impl" in ours
        assert ours <= ALLOWED, f"{library.name} imports {sorted(ours - ALLOWED)}"
        python = {name for name in symbols if re.match(r"_?Py[A-Z_]", name)}
        assert not python, f"{library.name} is for one Python: it imports {sorted(python)}"
        unstable = {name for name in symbols if re.match(r"_ZNK?(2at|3c10|5torch)", name)}
        assert not unstable, f"{library.name} imports C++ of torch: {sorted(unstable)}"
