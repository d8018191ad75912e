#!/usr/bin/env bash
# A Triton kernel with two float arguments, under TRITON_INTERPRET=1 and as its compiler sees it.
#
# Guess: the interpreter turns a Python float into float32 before the kernel begins, as a launch does.
# Seen (triton 3.6.0, torch 2.13.0, Python 3.11): arguments stay Python numbers there, and arithmetic among them
# is that of float64. (big + small) - big for 1.0 and 1e-9 is 1e-9 in the interpreter. The launcher calls both
# arguments fp32, and the compiler adds and subtracts in f32, which makes it 0.
# What it means here: the launches give kernels numbers that are float32 already, and kernels compute on tensors:
# what is computed of beta alone is computed on the host.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 triton==3.6.0 numpy==2.4.6
cat > "$folder/kernel.py" <<'PYTHON'
import triton
import triton.language as tl


@triton.jit
def kernel(out, big, small):
    tl.store(out, (big + small) - big)
PYTHON
cat > "$folder/interpreted.py" <<'PYTHON'
import torch
from kernel import kernel

out = torch.zeros(1)
kernel[(1,)](out, 1.0, 1e-9)
print("interpreted:", out.item())
assert abs(out.item() - 1e-9) < 1e-15, "changed: the interpreter adds in another precision"
PYTHON
cat > "$folder/compiled.py" <<'PYTHON'
import triton
from kernel import kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import mangle_type

kinds = {"out": "*fp32", "big": mangle_type(1.0), "small": mangle_type(1e-9)}
print("the launcher takes them for", kinds)
code = triton.compile(ASTSource(kernel, kinds, {}), target=GPUTarget("cuda", 90, 32)).asm["ttir"]
steps = [line.split(" loc")[0].strip() for line in code.split("\n") if "arith." in line]
print("compiled:", steps)
assert kinds["small"] == "fp32" and len(steps) == 2, "changed: a float argument is no fp32"
assert all(step.endswith(": f32") for step in steps), "changed: compiled arithmetic is not f32"
PYTHON
cd "$folder"
TRITON_INTERPRET=1 env/bin/python interpreted.py
TRITON_CACHE_DIR="$folder/cache" env/bin/python compiled.py
echo "as stated above"
