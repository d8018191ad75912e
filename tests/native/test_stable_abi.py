"""The libraries import nothing of torch but what the Stable ABI of torch 2.11 has."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import revdeq_kernels

PACKAGE = Path(revdeq_kernels.__file__).parent
ALLOWED = set(Path(__file__).with_name("stable_abi_2_11.txt").read_text().split())


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm, of binutils")
def test_imported_symbols() -> None:
    libraries = list(PACKAGE.glob("*.so"))
    assert any(library.name.startswith("_C.") for library in libraries)
    for library in libraries:
        command = ["nm", "--dynamic", "--undefined-only", str(library)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        symbols = {line.split()[-1] for line in listing.splitlines()}
        ours = {name for name in symbols if re.match(r"(aoti_)?torch_", name)}
        assert "torch_library_impl" in ours
        assert ours <= ALLOWED, f"{library.name} imports {sorted(ours - ALLOWED)}"
        unstable = {name for name in symbols if re.match(r"_ZNK?(2at|3c10|5torch)", name)}
        assert not unstable, f"{library.name} imports C++ of torch: {sorted(unstable)}"
