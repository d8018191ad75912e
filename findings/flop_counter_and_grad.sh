#!/usr/bin/env bash
# FlopCounterMode around torch.autograd.grad(loss, x), where x is a leaf that was given to a module.
#
# Guess: the operations of forward and backward are counted, as with loss.backward().
# Seen (torch 2.13.0, CPU, Python 3.11): with backward() they are. With autograd.grad the call raises RuntimeError, "A
# leaf node was passed to _will_engine_execute_node but we are currently running autograd.grad()": the counter's
# module tracker asks the engine about what each module was given, and of a leaf the engine answers only in
# backward(). A view of the leaf, x.view_as(x), in its place is counted. So every custom autograd.Function that calls
# autograd.grad over leaves in its backward (reversible and implicit layers do) raises under the counter, although the
# user called backward().
# What it means here: under such a mode the solver gives f views of its leaves.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def counted(use, given):
    torch.manual_seed(0)
    net, x = nn.Linear(8, 8), torch.randn(4, 8, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        use(net(given(x)).sum(), x)
    return counter.get_total_flops()


def backward(loss, _):
    loss.backward()


def grad(loss, x):
    torch.autograd.grad(loss, x)


def itself(x):
    return x


print("backward():", counted(backward, itself))
print("autograd.grad, a view given:", counted(grad, lambda x: x.view_as(x)))
try:
    print("autograd.grad, the leaf given:", counted(grad, itself))
except RuntimeError as error:
    print("autograd.grad, the leaf given:", str(error)[:120])
    assert "_will_engine_execute_node" in str(error), "changed: another error"
else:
    raise AssertionError("changed: it is counted")
PYTHON
echo "as stated above"
