#!/usr/bin/env bash
# FSDP2: fully_shard(cell, reshard_after_forward=False) for a cell that a loop calls N times: how often its weights are
# gathered in one training step.
#
# Guess: once. After the first call the cell stays whole, through the loop and through the backward pass, which is
# what the option is for; it is sharded again when the gradient has been reduced.
# Seen (torch 2.13.0, gloo, two processes, CPU, Python 3.11): once in the forward pass and N - 1 times in the backward
# pass. The backward pass of each call ends by sharding the cell, whatever reshard_after_forward says, and that of the
# call before it gathers it again: 5 times for 6 steps, 23 times for 24. The gradient is reduced once.
# set_reshard_after_backward(False), and reshard() before the optimizer's step, make it one gather in all, with the
# same bits in the gradient.
# What it means here: for a cell that is called many times, reshard_after_forward=False does not save the gathers of the
# backward pass; set_reshard_after_backward(False) does, if the weights fit in memory.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/program.py" <<'PYTHON'
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.profiler import ProfilerActivity, profile


def counted(run):
    """How many gathers and reductions `run` starts."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    counts = {event.key: event.count for event in seen.key_averages()}
    return counts.get("c10d::_allgather_base_", 0), counts.get("c10d::_reduce_scatter_base_", 0)


def train(mesh, rank, steps, keep):
    """Gathers and reductions forward and backward, and the gradient of the cell's weight."""
    torch.manual_seed(0)
    cell = fully_shard(nn.Linear(16, 16), mesh=mesh, reshard_after_forward=False)
    cell.set_reshard_after_backward(not keep)
    x, losses = torch.randn(8, 16)[4 * rank : 4 * rank + 4], []

    def loop():
        z = torch.zeros_like(x)
        for _ in range(steps):
            z = torch.tanh(cell(z) + x)
        losses.append(z.square().mean())

    forward, backward = counted(loop), counted(lambda: losses[0].backward())
    cell.reshard()
    return forward, backward, cell.weight.grad.full_tensor()


def main(rank, store):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    mesh = init_device_mesh("cpu", (2,))
    for steps in (6, 24):
        forward, backward, want = train(mesh, rank, steps, keep=False)
        kept_forward, kept_backward, found = train(mesh, rank, steps, keep=True)
        if rank == 0:
            print(f"{steps} steps: (gathers, reductions) {forward} forward, {backward} backward; "
                  f"{kept_forward} and {kept_backward} with set_reshard_after_backward(False)")
        assert forward == kept_forward == (1, 0)
        assert backward == (steps - 1, 1), f"changed: {backward}"
        assert kept_backward == (0, 1), f"changed: {kept_backward}"
        assert torch.equal(found, want)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(main, (sys.argv[1],), nprocs=2)
PYTHON
"$folder/env/bin/python" "$folder/program.py" "$folder/store"
echo "as stated above"
