"""Cases of ``test_distributed`` with the whole model on every rank: DistributedDataParallel."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.model import (
    Form,
    Model,
    backward,
    batch,
    case,
    gathered,
    gradient_error,
    parameter_error,
    reference,
    shard,
    twice,
)
from torch_revdeq import solve

TOL = 1e-3


@case("nothing exchanged", expect="wrong")
def alone() -> float:
    """Without any exchange, every rank has a large error; otherwise other cases prove nothing."""
    model = Model()
    backward(model, shard(batch()))
    errors = gathered(gradient_error(model, reference()))
    assert errors[0] != errors[1]
    return min(errors)


@case("ddp")
@case("ddp, hooks", adjoint="hooks")
@case("ddp, checkpoint", adjoint="checkpoint")
@case("ddp, float32 state", state=torch.float32)
@case("ddp, a method of the model", form="method")
@case("ddp, static graph", {"static_graph": True})
@case("ddp, static graph, hooks", {"static_graph": True}, adjoint="hooks")
@case("ddp, unused parameter", {"find_unused_parameters": True}, unused=True)
@case(
    "ddp, unused parameter, hooks", {"find_unused_parameters": True}, unused=True, adjoint="hooks"
)
@case("ddp, bucket views", {"gradient_as_bucket_view": True})
@case("ddp, cell used outside", shared=True)
@case("ddp, cell used outside, hooks", shared=True, adjoint="hooks")
@case("ddp, many buckets", {"bucket_cap_mb": 1e-5})
def replicated(
    wrapper: dict[str, Any] | None = None, form: Form = "layer", **options: Any
) -> float:
    """Twice, since buckets and a static graph settle in the first iteration."""
    model = DistributedDataParallel(Model(form, **options), **(wrapper or {}))
    return twice(model, reference(form, **options))


@case("ddp, accumulation without exchange")
@case("ddp, accumulation without exchange, hooks", adjoint="hooks")
def accumulated(**options: Any) -> float:
    """Two halves of the shard; only the second exchanges gradients."""
    model = DistributedDataParallel(Model(**options))
    first, second = shard(batch()).chunk(2)
    with model.no_sync():
        backward(model, first)
    apart = gathered(model.module.decoder.bias.grad.norm().item())
    assert apart[0] != apart[1]
    backward(model, second)
    for p in model.parameters():
        assert p.grad is not None
        p.grad /= 2
    return gradient_error(model, reference(**options))


@case("ddp, hook on a parameter")
@case("ddp, hook on a parameter, hooks", adjoint="hooks")
def hooked(**options: Any) -> float:
    """A tensor hook is called once with its rank's whole gradient, before the exchange."""
    calls = []
    models = Model(**{**options, "adjoint": "backprop"}), Model(**options)
    for model in models:
        model.f.a.weight.register_hook(lambda grad: calls.append(None) or 3 * grad)
    expected, wrapped = models[0], DistributedDataParallel(models[1])
    backward(expected, batch())
    backward(wrapped, shard(batch()))
    assert len(calls) == 2
    plain = gradient_error(expected, reference(**options))
    assert plain > 1e-2, f"the hook changes the gradient by {plain} only"
    return gradient_error(wrapped, expected)


@case("ddp, compiled f")
def compiled() -> float:
    """f compiled with torch.compile, inside the solver."""
    model = Model()
    model.solver.f = torch.compile(model.f, backend="aot_eager")
    error = twice(DistributedDataParallel(model), reference())
    assert counters["stats"]["unique_graphs"] > 0
    return error


@case("ddp, three steps of descent")
def trained() -> float:
    """The parameters of three steps of SGD."""
    return descended(DistributedDataParallel(Model()))


def descended(model: nn.Module) -> float:
    """The error of the parameters after three steps of SGD."""
    expected = Model(adjoint="backprop")
    for network, x in ((model, shard(batch())), (expected, batch())):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            backward(network, x)
            optimizer.step()
    moved = parameter_error(expected, Model())
    assert moved > 1e-2, f"the parameters moved by {moved} only"
    return parameter_error(model, expected)


@case("ddp around f", expect="wrapped f")
@case("ddp around f, hooks", adjoint="hooks", expect="wrapped f")
@case("ddp around f, backprop", adjoint="backprop", expect="wrapped f")
def wrapped_inside(**options: Any) -> float:
    """Raises, because gradients would be exchanged in every half step."""
    model = Model(**options)
    model.solver.f = DistributedDataParallel(model.f)
    backward(model, shard(batch()))
    return 0.0


@case("ranks stop together")
@case("ranks stop together, checks every third step", check_every=3)
def stopped(check_every: int = 1) -> float:
    """With a group, all ranks take as many steps as the slowest; so does the gradient."""
    options = {"tol": TOL, "check_every": check_every, "max_steps": 40}
    alone = Model(**options).sharpened(2.0)
    alone(shard(batch()))
    steps = gathered(_steps(alone))
    assert steps[0] != steps[1], f"alone, all ranks stop at step {steps[0]}"
    assert max(steps) < 40
    model = Model(**options, process_group=dist.group.WORLD).sharpened(2.0)
    backward(DistributedDataParallel(model), shard(batch()))
    together = gathered(_steps(model))
    assert together == [max(steps)] * len(steps), f"{together} steps together, {steps} alone"
    expected = Model(adjoint="backprop", max_steps=max(steps)).sharpened(2.0)
    backward(expected, batch())
    return gradient_error(model, expected)


@case("samples halt, ranks stop together")
def halted() -> float:
    """A sample halts as in one process; a rank continues until no sample moves on any rank."""
    options = {"tol": TOL, "max_steps": 40, "per_sample": True}
    alone = Model(**options).sharpened(2.0)
    alone(shard(batch()))
    steps = gathered(_steps(alone))
    assert steps[0] != steps[1], f"alone, all ranks stop at step {steps[0]}"
    model = Model(**options, process_group=dist.group.WORLD).sharpened(2.0)
    backward(DistributedDataParallel(model), shard(batch()))
    together = gathered(_steps(model))
    assert together == [max(steps)] * len(steps), f"{together} steps together, {steps} alone"
    expected = Model(adjoint="backprop", **options).sharpened(2.0)
    backward(expected, batch())
    stats = model.solver.stats, expected.solver.stats
    taken, wanted = (s.sample_steps for s in stats if s is not None)
    assert taken is not None and wanted is not None
    assert torch.equal(taken, shard(wanted)), (taken, wanted)
    return gradient_error(model, expected)


@case("a sample that is no number keeps all ranks going")
def unhalted() -> float:
    """A maximum over ranks must not lose the NaN, which gloo's does if it comes from rank 1."""
    x = shard(batch())
    if dist.get_rank() == 1:
        x = x.index_fill(0, torch.tensor([0]), float("nan"))
    options = {"tol": TOL, "max_steps": 15, "per_sample": True, "process_group": dist.group.WORLD}
    solution = solve(lambda z, x: 0.1 * z + x, x, x, state=torch.float32, **options)
    taken = solution.stats.sample_steps
    assert taken is not None and taken.min() < solution.stats.steps == 15, taken
    assert not solution.stats.converged
    return 0.0


@case("a number that is none keeps all ranks going")
def unstopped() -> float:
    """The same if the solve halts as a whole."""
    x = shard(batch())
    if dist.get_rank() == 1:
        x = x.index_fill(0, torch.tensor([0]), float("nan"))
    options = {"tol": TOL, "max_steps": 15, "process_group": dist.group.WORLD}
    solution = solve(lambda z, x: 0.1 * z + x, x, x, state=torch.float32, **options)
    assert solution.stats.steps == 15 and not solution.stats.converged
    return 0.0


def _steps(model: Any) -> int:
    return model.solver.stats.steps


@case("an f that communicates stops together")
def stopped_with_exchange() -> float:
    """f communicates in every evaluation: if one rank stopped earlier, the others would wait."""

    def f(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        total = z.detach().sum()
        dist.all_reduce(total)
        return torch.tanh(0.9 * z + x + 1e-3 * total)

    x = shard(batch())
    group = dist.group.WORLD
    solution = solve(f, torch.zeros_like(x), x, tol=TOL, max_steps=40, process_group=group)
    steps = gathered(solution.stats.steps)
    assert steps[0] == steps[1] < 40, steps
    assert solution.stats.converged
    residuals = gathered(solution.stats.residual)
    return abs(residuals[0] - residuals[1])
