"""`python -m bench.visit.build`: compile the extension in place, for the card that is here."""

from __future__ import annotations

import os
import subprocess
import sys

from bench.visit.steps import ROOT

COMMAND = [sys.executable, "setup.py", "build_ext", "--inplace"]


def settings(capability: tuple[int, int]) -> dict[str, str]:
    """The environment of a build; from Hopper on, what one chip alone has is asked for by an a."""
    major, minor = capability
    name = f"{major}.{minor}" + ("a" if major == 9 else "")
    return {
        "TORCH_CUDA_ARCH_LIST": name,
        "REVDEQ_BUILD_CUDA": "1",
        "MAX_JOBS": str(os.cpu_count() or 1),
    }


def main() -> int:
    """Build, and return setup.py's status; with --plan say what would be run."""
    if "--plan" in sys.argv[1:]:
        print("for sm_90:", settings((9, 0)), *COMMAND)
        return run([sys.executable, "setup.py", "--version"], {})
    import torch

    if not torch.cuda.is_available():
        print("torch finds no GPU")
        return 1
    asked = settings(torch.cuda.get_device_capability())
    print(asked, *COMMAND, flush=True)
    return run(COMMAND, asked)


def run(command: list[str], more: dict[str, str]) -> int:
    """The status of a command that is run here, with more in its environment."""
    return subprocess.run(command, cwd=ROOT, env=os.environ | more, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
