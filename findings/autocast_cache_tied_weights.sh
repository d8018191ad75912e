#!/usr/bin/env bash
# torch.autocast around a loop that applies one layer many times: the gradient of the layer's float32 weight.
#
# Guess: the uses are summed in float32, the dtype of the weight, so the gradient is as good as bfloat16 products are,
# about 0.5 %, after any number of steps, and autocast's cache of casts changes time and memory alone.
# Seen (torch 2.13.0, CPU, Python 3.11): autocast casts the weight once and keeps the bfloat16 copy in its cache. All
# uses share that copy, so their gradients are summed in bfloat16 before the one cast back to float32, and at some
# point the sum stops growing: the gradient is 2 % off after 64 steps, 10 % after 256 and 64 % after 1024, without a
# warning. With cache_enabled=False every use has its own cast, and the gradient is 0.3 % off each time. A non-reentrant
# checkpoint around each step has the bits of the plain loop; a reentrant one, which differentiates step by step, is
# right.
# What it means here: a solve evaluates f with autocast's cache off, in the forward and the backward pass, so its
# gradient does not have the bits of a plain loop under autocast. The loop is the wrong one: give it
# cache_enabled=False before you compare.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

torch.set_num_threads(1)


def gradient(steps, autocast=True, cache=True, **checkpointed):
    """Of the weight, where every state adds to the loss."""
    torch.manual_seed(0)
    layer, x = nn.Linear(32, 32), torch.randn(16, 32)

    def step(z):
        return 0.5 * z + 0.5 * torch.tanh(layer(z) + x).float()

    z, loss = torch.zeros(16, 32, requires_grad=True), 0.0
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=cache):
        for _ in range(steps):
            z = checkpoint(step, z, **checkpointed) if checkpointed else step(z)
            loss = loss + z.square().mean()
    loss.backward()
    return layer.weight.grad


def off(found, want):
    return float((found - want).norm() / want.norm())


for steps, at_least in ((64, 0.01), (256, 0.05), (1024, 0.4)):
    want = gradient(steps, autocast=False)
    cached, uncached = gradient(steps), gradient(steps, cache=False)
    print(f"{steps} steps: {off(cached, want):.1%} off, {off(uncached, want):.1%} without the cache")
    assert off(uncached, want) < 0.006, "changed: it is off without the cache, too"
    assert off(cached, want) > at_least, "changed: the gradient is right"

steps = 256
want, cached = gradient(steps, autocast=False), gradient(steps)
assert torch.equal(gradient(steps, use_reentrant=False), cached), "changed: checkpoint has other bits"
found = off(gradient(steps, use_reentrant=True), want)
print(f"{steps} steps, each one checkpointed: reentrant {found:.1%} off, non-reentrant as without")
assert found < 0.01, "changed: the reentrant checkpoint is off"
PYTHON
echo "as stated above"
