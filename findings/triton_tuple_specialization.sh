#!/usr/bin/env bash
# do_not_specialize of a parameter of a Triton kernel that is a tuple of integers.
#
# Guess: what keeps Triton from compiling a kernel anew for the values of an integer keeps it from the integers
# of a tuple, too.
# Seen (triton 3.6.0 and 3.9.0, Python 3.11, no GPU: what a launch works out before it compiles): it does not. An
# integer parameter stays i32 whatever its value; the same integer in a tuple is specialized in every case: 1 becomes
# a constant, multiples of 16 are marked as such, so that one kernel is compiled three times.
# What it means here: tensors go into kernels as tuples, the numbers of a step do not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet triton==3.6.0
cat > "$folder/kernel.py" <<'PYTHON'
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature


@triton.jit(do_not_specialize=["size", "sizes"])
def kernel(size, sizes):
    pass


backend = make_backend(GPUTarget("cuda", 90, 32))
bind = create_function_from_signature(kernel.signature, kernel.params, backend)
alone, within = set(), set()
for size in (1, 16, 5):
    _, (of_size, of_sizes), _ = bind(size, (size,))
    print(size, "alone:", of_size, "in a tuple:", of_sizes)
    alone.add(of_size)
    within.add(of_sizes)
assert alone == {("i32", None)}, "changed: an integer that is not to be specialized is"
assert len(within) == 3, "changed: integers in a tuple are specialized in another way"
assert (("constexpr",), (1,)) in within, "changed: a 1 in a tuple is no constant"
PYTHON
"$folder/env/bin/python" "$folder/kernel.py"
echo "as stated above"
