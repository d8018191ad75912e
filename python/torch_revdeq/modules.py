"""The modules in f: which they are, and which of them cannot be there."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize


def modules_of(f: object) -> list[nn.Module]:
    """The modules that f is, or that can be seen in it: bound, partially applied, closed over."""
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    stack: list[object] = [f]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            for module in value.modules():
                found[id(module)] = module
        else:
            stack.extend(_parts(value))
    return list(found.values())


def _parts(value: object) -> Iterator[object]:
    """What a callable is made of, as far as Python shows it."""
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()
    elif inspect.ismethod(value):
        yield from (value.__self__, value.__func__)
    elif inspect.isfunction(value):
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # a variable that has no value yet
                yield cell.cell_contents
        names = value.__code__.co_names
        yield from (value.__globals__[n] for n in names if _may_hold(value.__globals__.get(n)))
        yield from (d for d in value.__defaults__ or () if _may_hold(d))


def _may_hold(value: object) -> bool:
    """Whether a global or default is looked into: modules, and callables of the user's own."""
    return isinstance(value, (nn.Module, functools.partial)) or (
        (inspect.ismethod(value) or inspect.isfunction(value))
        and not value.__module__.startswith("torch.")
    )


def check_modules(modules: Sequence[nn.Module], adjoint: str) -> None:
    """Refuse what would give wrong gradients inside f: RuntimeError, by name."""
    if parametrize._cache_enabled:
        raise RuntimeError(
            "f: expected to run outside torch.nn.utils.parametrize.cached(), got its cache, "
            "whose weights belong to another graph; move solve out of that block"
        )
    replayed = adjoint in ("reversible", "checkpoint", "functional", "implicit")
    for module in modules:
        if isinstance(module, DistributedDataParallel):
            raise RuntimeError(
                "f: expected a module that is not wrapped in DistributedDataParallel, got one that "
                "is; wrap the model that calls solve, not f"
            )
        if replayed and is_sharded(module):
            raise RuntimeError(
                f"f: expected parameters that stay in place for adjoint={adjoint!r}, got a module "
                "sharded by FSDP; choose solve(adjoint='hooks'), or shard the module that calls "
                "solve"
            )


def is_sharded(module: Any) -> bool:
    """Whether its parameters come and go with each call of it."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # what is sharded has imported it
    if fsdp is None:
        return False
    if isinstance(module, fsdp.FSDPModule):
        # In its forward pass, or in one that a checkpoint repeats, it is what calls solve, met
        # because f is a method of it: its parameters are in place.
        return module._get_fsdp_state()._training_state.name == "IDLE"
    return isinstance(module, fsdp.FullyShardedDataParallel)
