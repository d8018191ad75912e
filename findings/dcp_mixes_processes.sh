#!/usr/bin/env bash
# torch.distributed.checkpoint.save of plain tensors that differ between processes: BatchNorm's running statistics, the
# state of a random generator, anything that is not a DTensor.
#
# Guess: a tensor under the same name on all processes counts as replicated, and the first process's copy is stored.
# Seen (torch 2.13.0, gloo, two processes, CPU, Python 3.11): replicated, yes, but each tensor is stored from the
# process that has the least to write so far. One BatchNorm layer is loaded with the mean of process 0 and the variance
# of process 1; of the ten tensors of two layers, five come from each. The checkpoint holds a state that no process ever
# had, without a warning on saving or loading. With DefaultSavePlanner(dedup_save_to_lowest_rank=True) all tensors are
# process 0's.
# What it means here: a state that differs between processes (a warm start z, the generator's state) needs a name for
# each process. examples/training gathers whole tensors and stores the first process's.
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
import torch.distributed.checkpoint as dcp
from torch import nn


def main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )

    def stored(name, state, **planner):
        """Which process's values come back, by name. All values of `state` are the rank."""
        place = f"{folder}/{name}"
        dcp.save(state, checkpoint_id=place, planner=dcp.DefaultSavePlanner(**planner))
        back = {key: torch.full_like(value, 9) for key, value in state.items()}
        dcp.load(back, checkpoint_id=place)
        for value in back.values():
            assert value.unique().numel() == 1
        return {key: int(value.flatten()[0]) for key, value in back.items()}

    layers = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    state = {key: torch.full_like(value, rank) for key, value in layers.state_dict().items()}
    found = stored("norms", state)
    generator = stored("generator", {"a": torch.get_rng_state() * 0 + rank, "b": torch.get_rng_state() * 0 + rank})
    lowest = stored("lowest", state, dedup_save_to_lowest_rank=True)
    if rank == 0:
        print("process whose copy was stored:", found)
        print("two states of generators:", generator)
    means = [found[f"{i}.running_mean"] for i in range(2)]
    variances = [found[f"{i}.running_var"] for i in range(2)]
    assert set(found.values()) == {0, 1}, "changed: all are one process's"
    assert any(m != v for m, v in zip(means, variances, strict=True)), "changed: no layer is mixed"
    assert set(generator.values()) == {0, 1}, "changed: the generators are one process's"
    assert set(lowest.values()) == {0}, lowest
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(main, (sys.argv[1],), nprocs=2)
PYTHON
"$folder/env/bin/python" "$folder/program.py" "$folder"
echo "as stated above"
