"""One process or several, and how they share a model.

``torchrun`` starts the processes. Under ddp each process has the whole model and a part of every
batch; under fsdp (FSDP2) each holds only a shard of the parameters and of the optimizer state.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from torch_revdeq import RevDEQ

from .config import Training
from .errors import RunError


@dataclass(frozen=True)
class Place:
    """This process: its rank, the number of processes, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes, returned in all of them."""
        return self.total(value) / self.world

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes, returned in all of them."""
        value = value.detach().clone()
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def wait(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()


@contextlib.contextmanager
def placed(training: Training) -> Iterator[Place]:
    """This process's place among those that torchrun started, or as the only one.

    Raises:
        RunError: `parallel` does not fit the number of processes, or the device is unavailable.
    """
    started = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    world = int(os.environ["WORLD_SIZE"]) if started else 1
    if training.parallel != "none" and not started:
        raise RunError(
            f"parallel: {training.parallel} needs processes that torchrun started; run torchrun "
            f"--nproc-per-node 2 examples/train_lm.py --parallel {training.parallel}"
        )
    if training.parallel == "none" and world > 1:
        raise RunError(
            f"parallel: expected ddp or fsdp for {world} processes, got none: each would train its "
            "own model"
        )
    if training.threads:
        torch.set_num_threads(training.threads)
    device = _device(training.device)
    if training.parallel == "none":
        yield Place(0, 1, device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Place(dist.get_rank(), world, device)
    finally:
        dist.destroy_process_group()


def _device(name: str) -> torch.device:
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    elif name == "cuda":
        name = f"cuda:{local}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"device: {name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def share(model: nn.Module, training: Training, place: Place) -> nn.Module:
    """The model on its device, wrapped for `parallel`. Every process must build the same model.

    Under fsdp the cell of every ``RevDEQ`` is sharded on its own, so that a process holds all of it
    only while it is evaluated; the solver's adjoint "auto" is then "hooks". Because such an f
    communicates, all ranks must stop together, so a solve with a tol gets the process group.
    """
    model = model.to(place.device)
    if training.parallel == "ddp":
        return DistributedDataParallel(model)
    if training.parallel == "fsdp":
        mesh = init_device_mesh(place.device.type, (place.world,))
        for layer in [module for module in model.modules() if isinstance(module, RevDEQ)]:
            fully_shard(layer.f, mesh=mesh)  # type: ignore[arg-type]  # f is a module here
            if layer.tol:
                layer.process_group = mesh.get_group()
        fully_shard(model, mesh=mesh)
    return model


@contextlib.contextmanager
def exchanging(model: Any, now: bool) -> Iterator[None]:
    """Backward passes in this block exchange gradients if `now`, else a later one does."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
        model.set_is_last_backward(now)
        yield
    elif isinstance(model, DistributedDataParallel) and not now:
        with model.no_sync():
            yield
    else:
        yield
