"""The modules in f, and which are not supported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

from ..adjoint import Adjoint
from .holdings import search


def modules_of(f: object) -> list[nn.Module]:
    """The modules that f is, or that are reachable from it."""
    return search([f]).modules


def check_modules(modules: Sequence[nn.Module], adjoint: Adjoint) -> None:
    """RuntimeError, by name, for modules that would give wrong gradients inside f."""
    if parametrize._cache_enabled:
        raise RuntimeError(
            "f: expected to run outside torch.nn.utils.parametrize.cached(), got its cache, "
            "whose weights belong to another graph; move solve out of that block"
        )
    if not adjoint.evaluates_once and _takes_per_sample_gradients(modules):
        raise RuntimeError(
            "f: expected parameters that take one gradient for the batch, got those of Opacus' "
            f"GradSampleModule, whose hooks count every evaluation, with "
            f"adjoint={adjoint.name!r}; choose adjoint='backprop'"
        )
    for module in modules:
        if isinstance(module, DistributedDataParallel):
            raise RuntimeError(
                "f: expected a module that is not wrapped in DistributedDataParallel, got one that "
                "is; wrap the model that calls solve, not f"
            )
        if not adjoint.takes_sharded and is_sharded(module):
            raise RuntimeError(
                f"f: expected parameters that stay in place for adjoint={adjoint.name!r}, got a "
                "module sharded by FSDP; choose solve(adjoint='hooks'), or shard the module that "
                "calls solve"
            )


def _takes_per_sample_gradients(modules: Sequence[nn.Module]) -> bool:
    """Whether Opacus has prepared a parameter for per-sample gradients."""
    if "opacus" not in sys.modules:
        return False
    parameters = (p for module in modules for p in module._parameters.values())
    return any(hasattr(p, "grad_sample") for p in parameters if p is not None)


def is_managed(module: Any) -> bool:
    """Whether FSDP manages its parameters, whether or not it is running now."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kinds = () if fsdp is None else (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
    return isinstance(module, kinds)


def is_sharded(module: Any) -> bool:
    """Whether FSDP exchanges its parameters in each call."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # a sharded module has imported it
    if fsdp is None:
        return False
    if isinstance(module, fsdp.FSDPModule):
        # In its own forward pass, or in one that a checkpoint repeats, this module calls solve, and
        # f is one of its methods: its parameters are in place.
        return module._get_fsdp_state()._training_state.name == "IDLE"
    return isinstance(module, fsdp.FullyShardedDataParallel)
