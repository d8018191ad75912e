#!/usr/bin/env bash
# torch.nn.functional.gelu(approximate="tanh"): from about 1.85e19 on its gradient is NaN, though its value is right.
#
# Guess: where gelu(x) is x or 0 its gradient is 1 or 0, up to the largest finite x, as that of the exact gelu is.
# Seen (torch 2.13.0, CPU, Python 3.11): at 2e19 and -2e19 the value is 2e19 and -0, and the gradient NaN: x squared
# leaves float32's range, and infinity times 0, the slope of tanh there, is NaN. At 1e19 it is 1 and 0. bfloat16, which
# reaches as far, has the same NaN; float64 has it from 1e155 on; the exact gelu has 1 and 0 everywhere.
# What it means here: the composite of the equilibrium cell differentiates by this function, and the kernel for CPUs,
# which bounds the square, is compared with it on smaller numbers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import torch
from torch.nn.functional import gelu


def gradients(size, dtype=torch.float32, approximate="tanh"):
    x = torch.tensor([size, -size], dtype=dtype, requires_grad=True)
    value = gelu(x, approximate=approximate)
    assert value.tolist() == [x[0].item(), 0.0]
    return [str(abs(g)) for g in torch.autograd.grad(value.sum(), x)[0].tolist()]


found = {
    "float32, 1e19": gradients(1e19),
    "float32, 2e19": gradients(2e19),
    "bfloat16, 2e19": gradients(2e19, torch.bfloat16),
    "float64, 1e153": gradients(1e153, torch.float64),
    "float64, 1e155": gradients(1e155, torch.float64),
    "float32, 2e19, exact": gradients(2e19, approximate="none"),
}
print(f"torch {torch.__version__}:", found)
right, nan = ["1.0", "0.0"], ["nan", "nan"]
assert list(found.values()) == [right, nan, nan, right, nan, right]
PYTHON
