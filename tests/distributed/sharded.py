"""Cases of ``test_distributed`` where the ranks share the parameters: FSDP2, tensor parallelism."""

from __future__ import annotations

import sys
from typing import Any, Literal
from unittest import mock

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils.checkpoint import checkpoint

from tests.distributed.model import (
    Form,
    Model,
    backward,
    batch,
    case,
    gradient_error,
    reference,
    shard,
    twice,
    world,
)
from tests.distributed.replicated import descended

Where = Literal["f", "children"]
"""The parts of f that are sharded by themselves."""


def sharded(model: Model, *parts: nn.Module, **options: Any) -> Model:
    """The model, sharded by FSDP2: each of the parts, and the rest."""
    mesh = init_device_mesh("cpu", (world(),))
    for part in (*parts, model):
        fully_shard(part, mesh=mesh, **options)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    return model


# ---- the module that calls solve -------------------------------------------------------------


@case("fsdp", True)
@case("fsdp, not resharded", False)
@case("fsdp, hooks", True, adjoint="hooks")
@case("fsdp, checkpoint", True, adjoint="checkpoint")
@case("fsdp, float32 state", True, state=torch.float32)
def around_the_layer(reshard: bool, **options: Any) -> float:
    """The layer and the rest of the model are sharded separately."""
    model = Model(**options)
    sharded(model, model.solver, reshard_after_forward=reshard)
    return twice(model, reference(**options))


@case("fsdp of the root", "layer", True)
@case("fsdp of the root, not resharded", "layer", False)
@case("fsdp of the root, closure", "closure", True)
@case("fsdp of the root, a method of the model", "method", True)
@case("fsdp of the root, a method of the model, not resharded", "method", False)
@case("fsdp of the root, cell used outside", "layer", True, shared=True)
def around_the_model(form: Form, reshard: bool, **options: Any) -> float:
    """The model is sharded as one unit."""
    model = sharded(Model(form, **options), reshard_after_forward=reshard)
    return twice(model, reference(form, **options))


@case("fsdp of the root, recomputed", "layer")
@case("fsdp of the root, recomputed, a method of the model", "method")
def recomputed(form: Form) -> float:
    """With a checkpoint of the whole model, solve is called again in the backward pass."""
    model = sharded(Model(form))
    checkpoint(model, shard(batch()), use_reentrant=False).square().mean().backward()
    return gradient_error(model, reference(form))


@case("fsdp of all parts, a method of the model", adjoint="hooks")
def part_by_part(**options: Any) -> float:
    """f is a method of a model whose other parts are sharded by themselves."""
    model = Model("method", **options)
    return twice(sharded(model, model.encoder, model.f, model.decoder), reference("method"))


@case("fsdp, accumulation without exchange")
def accumulated() -> float:
    """Two halves of the shard; only the second exchanges gradients."""
    model = Model()
    sharded(model, model.solver)
    first, second = shard(batch()).chunk(2)
    model.set_requires_gradient_sync(False)  # type: ignore[operator]
    backward(model, first)
    model.set_requires_gradient_sync(True)  # type: ignore[operator]
    backward(model, second)
    for p in model.parameters():
        assert p.grad is not None
        p.grad /= 2
    return gradient_error(model, reference())


@case("fsdp, three steps of descent", True)
@case("fsdp, three steps of descent, not resharded", False)
def trained(reshard: bool) -> float:
    """The parameters of three steps of SGD."""
    model = Model()
    return descended(sharded(model, model.solver, reshard_after_forward=reshard))


@case("fsdp, bfloat16 parameters", accumulate="autograd")
@case("fsdp, bfloat16 parameters, hooks", adjoint="hooks")
@case("fsdp, bfloat16 parameters, added up in float32", accumulate="float32", expect="rounded")
def low_precision(**options: Any) -> float:
    """Compare to autograd's bfloat16 gradients of each shard, averaged in float32.

    With bfloat16 additions they are identical; with float32 additions they are more accurate.
    """
    expected = Model()
    for x in batch().chunk(world()):
        part = Model(adjoint="backprop").bfloat16()
        backward(part, x.bfloat16())
        for total, p in zip(expected.parameters(), part.parameters(), strict=True):
            assert p.grad is not None
            mean = p.grad.float() / world()
            total.grad = mean if total.grad is None else total.grad + mean
    model = Model(**options)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return twice(sharded(model, model.solver, mp_policy=policy), expected)


# ---- f itself --------------------------------------------------------------------------------


def sharded_inside(where: Where, form: Form, **options: Any) -> Model:
    """A model whose f is sharded by itself, or layer by layer."""
    model = Model(form, **options)
    parts = [model.f] if where == "f" else [model.f.a, model.f.b]
    return sharded(model, *parts, reshard_after_forward=True)


@case("fsdp of f, backprop", "f", "layer", adjoint="backprop")
@case("fsdp of f, auto", "f", "layer")
@case("fsdp of f's children, auto", "children", "closure")
def inside(where: Where, form: Form, **options: Any) -> float:
    """Raises, or gives the right gradients, depending on the adjoint."""
    return twice(sharded_inside(where, form, **options), reference(form, **options))


PLACES: dict[str, tuple[Where, Form]] = {
    "f": ("f", "layer"),
    "f's children": ("children", "layer"),
    "f in a closure": ("f", "closure"),
    "f in a method": ("f", "method"),
}

for place, at in PLACES.items():
    for adjoint in ("reversible", "checkpoint"):
        case(f"fsdp of {place}, {adjoint}", *at, adjoint=adjoint, expect="sharded f")(inside)
    if at[1] != "method":
        named = f"fsdp of {place}, hooks"
        case(named, *at, adjoint="hooks")(inside)
        case(f"{named}, float32 state", *at, adjoint="hooks", state=torch.float32)(inside)


@case("fsdp of f, reversible, not refused", expect="another graph")
def unrefused() -> float:
    """What the error prevents: silently wrong gradients."""
    with mock.patch.object(
        sys.modules["torch_revdeq.evaluation.effects.modules"], "is_sharded", return_value=False
    ):
        return inside("f", "layer", adjoint="reversible")


@case("fsdp of f, no gradient")
def evaluated() -> float:
    """There is no backward pass, so there is no error."""
    model, expected = sharded_inside("f", "layer", adjoint="reversible"), Model()
    with torch.no_grad():
        return float((model(batch()) - expected(batch())).abs().max())


@case("fsdp1 of f", adjoint="reversible", expect="sharded f")
@case("fsdp1 of f, checkpoint", adjoint="checkpoint", expect="sharded f")
def wrapped_inside(**options: Any) -> float:
    """f in FullyShardedDataParallel also raises."""
    model = Model(**options)
    model.solver.f = FullyShardedDataParallel(model.f, device_id=torch.device("cpu"))
    backward(model, shard(batch()))
    return 0.0


# ---- tensor parallelism ----------------------------------------------------------------------


@case("tensor parallel f")
@case("tensor parallel f, float32 state", state=torch.float32)
@case("tensor parallel f, hooks", adjoint="hooks")
@case("tensor parallel f, frozen encoder", frozen=True)
@case("tensor parallel f, frozen encoder, float32 state", frozen=True, state=torch.float32)
def tensor_parallel(*, frozen: bool = False, **options: Any) -> float:
    """Every rank holds half of f's hidden layer, and sees the whole batch.

    With a frozen encoder, all of f's gradients are distributed tensors; otherwise that of x is not.
    """
    model, expected = Model(**options), Model(**{**options, "adjoint": "backprop"})
    for either in (model, expected):
        either.encoder.requires_grad_(not frozen)
    backward(expected, batch())
    mesh = init_device_mesh("cpu", (world(),))
    parallelize_module(model.f, mesh, {"a": ColwiseParallel(), "b": RowwiseParallel()})
    assert model.f.a.weight.to_local().shape[0] * world() == model.f.a.weight.shape[0]
    return twice(model, expected, batch())
