#!/usr/bin/env bash
# torch.nn.functional.gelu on a CPU: its value at +inf and near the largest float32 depends on the number of elements.
#
# Guess: gelu(inf) is inf and gelu(3e38) is 3e38, as x times a factor that is 1 there; only gelu(-inf), inf times 0, may
# be NaN; and no element depends on how many others there are.
# Seen (torch 2.13.0, CPU with AVX2 or AVX-512, Python 3.11): of one element, as guessed. Of 16 elements, which are
# computed as vectors, gelu(inf) is NaN and gelu(3e38) is inf; gelu(1e38) is 1e38 in both. The tanh approximation gives
# inf for inf in both.
# What it means here: a row of an equilibrium that reached infinity is NaN or not by the size of the batch, so what is
# not finite counts as lost, whichever it is, and implementations are compared on finite numbers below 1e38.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import torch
from torch.nn.functional import gelu


def of(value, count, **options):
    (one,) = set(map(str, gelu(torch.full((count,), value), **options).tolist()))
    return one


inf = float("inf")
found = {
    "one": [of(inf, 1), of(3e38, 1), of(1e38, 1)],
    "sixteen": [of(inf, 16), of(3e38, 16), of(1e38, 16)],
    "tanh": [of(inf, count, approximate="tanh") for count in (1, 16)],
}
print(f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}):", found)
near, smaller = (str(torch.tensor(value).item()) for value in (3e38, 1e38))
assert found == {
    "one": ["inf", near, smaller],
    "sixteen": ["nan", "inf", smaller],
    "tanh": ["inf", "inf"],
}
PYTHON
