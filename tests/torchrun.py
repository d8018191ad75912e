"""Start two processes of torch.distributed with torchrun."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import ROOT

SECONDS = 300


def torchrun(module: str, *args: str) -> subprocess.Popen[str]:
    """Run the module in both processes, with the packages of this process and of examples/."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = [str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")]
    here = {"OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        here["GLOO_SOCKET_IFNAME"] = "lo"  # independent of how this machine's name resolves
    return subprocess.Popen(
        [*start, "-m", module, *args],
        cwd=ROOT,
        env={**here, **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output_of(process: subprocess.Popen[str]) -> str:
    """The output; the test fails if it takes too long."""
    with process:
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its processes first
            output, _ = process.communicate()
            pytest.fail(f"the processes took more than {SECONDS} s:\n{output[-4000:]}")
    return output
