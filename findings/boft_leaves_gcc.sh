#!/usr/bin/env bash
# A model with a BOFT adapter is called once on a machine without a GPU; then something is compiled for the CPU.
#
# Guess: BOFT's CUDA extension cannot be built here, peft says so and computes without it, and nothing else changes.
# Seen (peft 0.21.2, torch 2.13.0, CPU, Python 3.11, g++ 12): peft sets CC and CXX to "gcc" while it tries to build the
# extension, in a context manager without try/finally. The build raises, so both variables stay set. torch.compile in a
# process that is started afterwards (torchrun, a data loader's worker), or that has not imported Inductor yet, links
# its CPU kernels with gcc, that is without the C++ library, and raises "undefined symbol" when it loads one. (A kernel
# that calls a vector function of libtorch, such as exp, gets the C++ library from there and loads.)
# What it means here: tests/training/test_trainers.py restores the environment after each kind of adapter, and
# docs/trainers.md tells users to.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0 peft==0.21.2 \
  setuptools==81.0.0
cd "$folder"
unset CC CXX
export CUDA_VISIBLE_DEVICES="" TORCHINDUCTOR_CACHE_DIR="$folder/inductor" TORCH_EXTENSIONS_DIR="$folder/extensions"
"$folder/env/bin/python" - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import os
import subprocess
import sys

import torch
from peft import BOFTConfig, get_peft_model

COMPILE = """
import torch
out = torch.compile(lambda x: 2 * x + 1)(torch.ones(64))
assert (out == 3).all()
"""


def compiling():
    """What a new Python says that compiles a function."""
    run = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True)
    return "compiles" if run.returncode == 0 else run.stderr.strip()


before = compiling()
assert before == "compiles", before
model = get_peft_model(
    torch.nn.Sequential(torch.nn.Linear(64, 64)), BOFTConfig(boft_block_size=8, target_modules=["0"])
)
assert model(torch.randn(4, 64)).isfinite().all()
left = {name: os.environ.get(name) for name in ("CC", "CXX")}
after = compiling()
said = next((line for line in after.splitlines() if "undefined symbol" in line), after)
print("after one call of a model with BOFT:", left, "| a new process:", "undefined" + said.split("undefined")[-1])
assert left == {"CC": "gcc", "CXX": "gcc"}, "changed: the variables are restored"
assert "undefined symbol" in after, "changed: a function compiles"
del os.environ["CC"], os.environ["CXX"]
assert compiling() == "compiles"
PYTHON
echo "as stated above"
