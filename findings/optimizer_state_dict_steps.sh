#!/usr/bin/env bash
# torch.distributed.checkpoint.state_dict.get_optimizer_state_dict of an optimizer that has not stepped yet.
#
# Guess: it reads. Training that asked for the state before its first step, to store it or to see its keys, has the
# bits of training that did not.
# Seen (torch 2.13.0, one process, CPU, Python 3.11): it steps, with zero gradients and a learning rate of zero, in
# order to have a state to return, and leaves that state in the optimizer. Adam has counted: the first real step is
# number 2, its bias correction is too small, and the weights move by 0.74 of the learning rate instead of 1.0. After
# 100 steps they still differ by 1e-3. Hooks on the optimizer's steps, which count or keep an average of the weights,
# run once too often. SGD with momentum is not changed; and where gradients are in place already, nothing is.
# What it means here: examples/training stores checkpoints after steps; when it resumes it overwrites the whole state,
# Adam's count included.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

torch.set_num_threads(1)
x, y = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(0))


def train(kind, read, steps, **options):
    """The layer and its optimizer after some steps, and how often the optimizer's hook ran."""
    torch.manual_seed(0)
    layer, calls = nn.Linear(8, 8), []
    optimizer = kind(layer.parameters(), lr=0.01, **options)
    optimizer.register_step_post_hook(lambda *_: calls.append(None))
    if read == "with gradients":
        (layer(x) - y).square().mean().backward()
    if read:
        assert get_optimizer_state_dict(layer, optimizer)["param_groups"]
    for _ in range(steps):
        optimizer.zero_grad()
        (layer(x) - y).square().mean().backward()
        optimizer.step()
    return layer.weight.detach().clone(), optimizer.state[layer.weight], len(calls)


start = train(torch.optim.Adam, False, 0)[0]
moved = {}
for read in (False, True):
    weight, state, calls = train(torch.optim.Adam, read, 1)
    moved[read] = float((weight - start).abs().max()) / 0.01
    print(f"read first: {read}; Adam's step is {state['step']:.0f}, its hook ran {calls} times, "
          f"the weights moved by {moved[read]:.2f} of the learning rate")
    assert (int(state["step"]), calls) == ((2, 2) if read else (1, 1)), "changed: reading does not step"
assert abs(moved[False] - 1) < 0.01 and abs(moved[True] - 0.74) < 0.01, f"changed: {moved}"

late = [train(torch.optim.Adam, read, 100)[0] for read in (False, True)]
print(f"after 100 steps the weights differ by up to {(late[0] - late[1]).abs().max():.1e}")
assert not torch.equal(*late), "changed: reading does not matter"
held = [train(torch.optim.Adam, read, 10)[0] for read in (False, "with gradients")]
assert torch.equal(*held), "changed: with gradients it steps, too"
plain = [train(torch.optim.SGD, read, 10, momentum=0.9)[0] for read in (False, True)]
assert torch.equal(*plain), "changed: SGD is moved"
PYTHON
echo "as stated above"
