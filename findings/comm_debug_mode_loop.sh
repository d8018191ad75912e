#!/usr/bin/env bash
# torch.distributed.tensor.debug.CommDebugMode around a model that calls one of its modules more than once.
#
# Guess: it counts collectives, and attributes those of a module that is called N times to that module.
# Seen (torch 2.13.0, one process, CPU, Python 3.11): the second call of a module raises IndexError, "list index out of
# range", from a hook of the mode. nn.Linear called twice is enough; no process group and no DTensor are needed. Each
# call adds a hook to the module, and the mode keeps the handle of the last one only, so the first stays on the module
# when the block is left: from then on that module raises IndexError, "pop from empty list", in every call outside of
# the mode. Other modules run.
# What it means here: count the collectives of a loop with torch.profiler (events named c10d::*); a cell that has been
# under the mode is lost.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.distributed.tensor.debug import CommDebugMode

x = torch.ones(2, 4)


def error(call):
    try:
        call()
    except IndexError as found:
        return str(found)
    return None


def under_mode(module, times):
    with CommDebugMode():
        for _ in range(times):
            module(x)


apart = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
assert error(lambda: under_mode(apart, 1)) is None
assert error(lambda: nn.Linear(4, 4)(x)) is None
print("each module called once: runs")

cell = nn.Linear(4, 4)
found = error(lambda: under_mode(cell, 2))
print("one module called twice:", found)
assert found == "list index out of range", f"changed: {found}"
after = error(lambda: cell(x))
print("the same module afterwards, outside of the mode:", after)
assert after == "pop from empty list", f"changed: {after}"
assert error(lambda: nn.Linear(4, 4)(x)) is None, "changed: other modules raise, too"
PYTHON
echo "as stated above"
