#!/usr/bin/env bash
# tl.sum, tl.cumsum and tl.max of a tensor of bfloat16 or float16: the type in which Triton adds and compares.
#
# Guess: all three work in float32 and round the result once, as torch.sum does: a reduction in bfloat16 has no
# accuracy.
# Seen (triton 3.6.0 and 3.9.0, Python 3.11, compiled for sm_90 without a GPU): tl.sum adds in the type of the tensor,
# and the PTX rounds to 16 bits after each addition. tl.max, where nothing is rounded, converts to float32 first.
# tl.cumsum depends on the release: of bfloat16 in float32 with 3.6.0 and in bfloat16 with 3.9.0, of float16 in
# float16 with both. So the same source lost accuracy with the newer release, and nothing is said.
# What it means here: the kernels convert to float32 before each sum, as a kernel that is added has to.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/sums.py" <<'PYTHON'
import re
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def total(x, out, N: tl.constexpr):
    tl.store(out, tl.sum(tl.load(x + tl.arange(0, N)), 0))


@triton.jit
def running(x, out, N: tl.constexpr):
    tl.store(out + tl.arange(0, N), tl.cumsum(tl.load(x + tl.arange(0, N)), 0))


@triton.jit
def largest(x, out, N: tl.constexpr):
    tl.store(out, tl.max(tl.load(x + tl.arange(0, N)), 0))


def kinds(kernel, dtype):
    """The type that Triton's own code combines two elements in, and the additions of the PTX."""
    signature = {"x": f"*{dtype}", "out": f"*{dtype}", "N": "constexpr"}
    source = ASTSource(fn=kernel, signature=signature, constexprs={"N": 1024})
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm
    (kind,) = set(re.findall(r"arith\.(?:addf|maxnumf) .* : (b?f\d+)", code["ttir"]))
    return kind, set(re.findall(r"\badd(?:\.rn)?\.(b?f\d+)", code["ptx"]))


release = triton.__version__
assert release == sys.argv[1]
for dtype, short in {"bf16": "bf16", "fp16": "f16"}.items():
    wide = dtype == "bf16" and release == "3.6.0"
    for kernel, want in ((total, short), (running, "f32" if wide else short), (largest, "f32")):
        kind, added = kinds(kernel, dtype)
        print(f"triton {release}, {kernel.__name__} of {dtype}: combined as {kind}, the PTX adds in {added or '-'}")
        assert kind == want, f"changed: {kernel.__name__} of {dtype} is combined as {kind}"
        assert kernel is largest or added == {want}, f"changed: the PTX adds in {added}"
PYTHON
for release in 3.6.0 3.9.0; do
    python3 -m venv "$folder/env"
    "$folder/env/bin/pip" install --quiet "triton==$release"
    TRITON_CACHE_DIR="$folder/cache" "$folder/env/bin/python" "$folder/sums.py" "$release"
    rm -rf "$folder/env" "$folder/cache"
done
echo "as stated above"
