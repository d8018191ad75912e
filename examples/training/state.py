"""Unsharded weights and optimizer state, independent of the number of processes.

``torch.distributed.checkpoint`` gathers shards into whole tensors and splits them again. For that,
the first process holds all of them in its memory: three times the size of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from .checkpoint import OPTIMIZER, WEIGHTS, Checkpoint, Tensors, read_tensors
from .errors import RunError


def gather(model: nn.Module, optimizer: Optimizer) -> tuple[Tensors, Tensors]:
    """The weights, by the model's names, and the optimizer's state, by "name/kind"; on the CPU.

    All processes must call this; the first one gets the tensors, the others nothing.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: Any = get_model_state_dict(model, options=options)
    found: Any = get_optimizer_state_dict(model, optimizer, options=options)
    state = {
        f"{name}/{kind}": value
        for name, kinds in found.get("state", {}).items()
        for kind, value in kinds.items()
    }
    return dict(apart(weights)), dict(apart(state))


def restore(model: nn.Module, optimizer: Optimizer, checkpoint: Checkpoint) -> None:
    """Load the state of a checkpoint into model and optimizer. Every process reads its files.

    Raises:
        RunError: the tensors do not fit this model.
    """
    options = StateDictOptions(full_state_dict=True)
    weights: Any = read_tensors(checkpoint.path / WEIGHTS)
    _check(weights, model, checkpoint)
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in read_tensors(checkpoint.path / OPTIMIZER).items():
        name, kind = key.rsplit("/", 1)
        state.setdefault(name, {})[kind] = value
    try:
        set_model_state_dict(model, weights, options=options)
        groups = get_optimizer_state_dict(model, optimizer)["param_groups"]
        of_optimizer: Any = {"state": state, "param_groups": groups}
        set_optimizer_state_dict(model, optimizer, of_optimizer, options=options)
    except (RuntimeError, KeyError, ValueError) as error:
        raise RunError(f"{checkpoint.path}: not a checkpoint of this model: {error}") from error
    for group, rate in zip(optimizer.param_groups, checkpoint.facts.rates, strict=True):
        group["lr"] = rate


def apart(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    """The tensors without shared memory, as safetensors requires: shared ones are copied."""
    seen = set()
    for name, value in tensors.items():
        storage = value.untyped_storage().data_ptr()
        yield name, value.clone() if storage in seen else value.contiguous()
        seen.add(storage)


def _check(weights: Tensors, model: nn.Module, checkpoint: Checkpoint) -> None:
    """RunError if names or shapes differ from the model's."""
    own: Any = get_model_state_dict(model)
    wanted = {name: tuple(value.shape) for name, value in own.items()}
    got = {name: tuple(value.shape) for name, value in weights.items()}
    if wanted != got:
        names = sorted(n for n in {*wanted, *got} if wanted.get(n) != got.get(n))
        first = names[0]
        raise RunError(
            f"{checkpoint.path}: not the weights of this model: {len(names)} tensors differ; "
            f"{first} is {got.get(first, 'missing')} there and {wanted.get(first, 'unknown')} here"
        )
