#!/usr/bin/env bash
# x / 0.2 in a Triton kernel, with the divisor written in the kernel (or a tl.constexpr) and as an argument.
#
# Guess: both are the same division, div.full.f32 on NVIDIA (within 2 ulp) and a correctly rounded one on AMD; a
# constant saves nothing but a register.
# Seen (triton 3.6.0 and 3.9.0, Python 3.11, compiled for sm_90 and gfx942 without a GPU): with 3.6.0, as guessed.
# With 3.9.0 and sm_90, a constant divisor becomes one approximate reciprocal (div.approx.f32) and a product for every
# element; tl.fdiv as well. An argument of the same value is still divided by. So the bits of x / beta change with the
# release, and with whether beta is a constant. tl.div_rn is div.rn.f32 in both, and gfx942 divides in both.
# What it means here: the inverse of a float half step divides by 1 - beta, and with another rounding the iterates
# would not be reconstructed with the CPU's bits. The kernels use tl.div_rn for float32.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/divisions.py" <<'PYTHON'
import re
import sys
from collections import Counter

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def constant(x, beta, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(x + i, tl.load(x + i) / 0.2)


@triton.jit
def argument(x, beta, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(x + i, tl.load(x + i) / beta)


@triton.jit
def rounded(x, beta, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(x + i, tl.div_rn(tl.load(x + i), tl.full([N], 0.2, tl.float32)))


def divisions(kernel, target):
    """The divisions of 1024 numbers by 128 threads on NVIDIA, and by 256 on AMD; products as well on NVIDIA."""
    signature = {"x": "*fp32", "beta": "fp32", "N": "constexpr"}
    code = triton.compile(ASTSource(fn=kernel, signature=signature, constexprs={"N": 1024}), target=target).asm
    text = code["ptx"] if "ptx" in code else code["amdgcn"]
    return dict(Counter(re.findall(r"\b(div\.\w+\.f32|mul(?:\.rn)?\.f32|v_div_fixup_f32)", text)))


release = triton.__version__
assert release == sys.argv[1]
nvidia, amd = GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)
reciprocal = {"div.approx.f32": 1, "mul.f32": 8}
for kernel, want in {
    constant: reciprocal if release == "3.9.0" else {"div.full.f32": 8},
    argument: {"div.full.f32": 8},
    rounded: {"div.rn.f32": 8},
}.items():
    found = divisions(kernel, nvidia)
    print(f"triton {release}, sm_90, {kernel.__name__}: {found}")
    assert found == want, f"changed: {kernel.__name__} on sm_90"
    assert divisions(kernel, amd) == {"v_div_fixup_f32": 4}, f"changed: {kernel.__name__} on gfx942"
PYTHON
for release in 3.6.0 3.9.0; do
    python3 -m venv "$folder/env"
    "$folder/env/bin/pip" install --quiet "triton==$release"
    TRITON_CACHE_DIR="$folder/cache" "$folder/env/bin/python" "$folder/divisions.py" "$release"
    rm -rf "$folder/env" "$folder/cache"
done
echo "as stated above"
