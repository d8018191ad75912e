#!/usr/bin/env bash
# torch.compile(fullgraph=True, dynamic=False) that compiles no frame raises, and leaves dynamic shapes off for all others.
#
# Guess: dynamic=False is an option of that one function. Where torch.compile is switched off for a while, calling it
# runs the function as it is, or raises; what is compiled afterwards, elsewhere in the process, does not change.
# Seen (torch 2.13.0, Python 3.11): under torch._dynamo.config.patch(disable=True) the call raises RuntimeError, "found
# no compiled frames", and torch._dynamo.config.automatic_dynamic_shapes stays False from then on: a function that was
# compiled twice for five lengths (one, then any) is compiled five times. Without fullgraph=True nothing stays behind.
# What it means here: the solver asks whether torch.compile is switched off before it has f traced, and puts the two
# settings back where no frame was compiled.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/compiled.py" <<'PYTHON'
import torch
from torch._dynamo import config
from torch._dynamo.testing import CompileCounter


def compilations():
    counter = CompileCounter()
    double = torch.compile(lambda x: 2 * x, backend=counter)
    for length in (3, 4, 5, 6, 7):
        double(torch.ones(length))
    return counter.frame_count


def increment(x):
    return x + 1


def call(**options):
    torch._dynamo.reset()
    with config.patch(disable=True):
        try:
            torch.compile(increment, backend="eager", dynamic=False, **options)(torch.ones(2))
            said = "nothing"
        except RuntimeError as error:
            said = "found no compiled frames" if "found no compiled frames" in str(error) else str(error)
    return said, config.automatic_dynamic_shapes, compilations()


found = [("before", config.automatic_dynamic_shapes, compilations()), call(), call(fullgraph=True)]
print(f"torch {torch.__version__}:", found)
assert found == [
    ("before", True, 2),
    ("nothing", True, 2),
    ("found no compiled frames", False, 5),
]
PYTHON
"$folder/env/bin/python" "$folder/compiled.py"
