"""A call of ``solve`` as torch.compile traces it: taken apart into tensors and constants.

Imported by the compiler alone, for it imports the compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .call import drawn
from .conditions import autocast_state
from .float_pair import FLOAT_STATES
from .functional import Run, check_functional, spoiled, with_parameters
from .opaque import Plan
from .options import with_defaults
from .schedule import Schedule
from .solution import Solution, Stats


def solve_in_graph(
    owner: nn.Module, f: nn.Module, z0: Any, args: Sequence[Any], options: dict[str, Any]
) -> Solution:
    """The call, as the compiler traces it. `owner` is f itself, or has it as its attribute f."""
    leaves, start = _taken_apart(z0)
    y0 = options.pop("y0", None)
    second, second_form = ([], None) if y0 is None else _taken_apart(y0)
    beta = options.pop("beta", 0.5)
    learned = [beta] if isinstance(beta, Tensor) else []
    mask = options.pop("residual_mask", None)  # the last argument, where there is one
    values, form = _taken_apart([*args] if mask is None else [*args, mask])
    tensors: list[Tensor] = []
    arguments: list[tuple[bool, int, Any]] = []
    for value in values:
        if isinstance(value, Tensor):
            arguments.append((True, len(tensors), None))
            tensors.append(value)
        else:
            arguments.append((False, 0, value))
    number = None if learned else beta
    layer = owner is not f
    device = leaves[0].device
    masked = mask is not None
    plan = _plan(owner, layer, start, second_form, form, arguments, number, options, masked, device)
    parameters = [p for p in f.parameters() if p.requires_grad]
    needs = [t.requires_grad for t in [*leaves, *second, *learned, *tensors]]
    out = torch.ops.torch_revdeq.solve(
        leaves, second, learned, tensors, parameters, plan.key, needs, torch.is_grad_enabled()
    )
    n, structure = len(leaves), pytree.tree_structure(z0)
    parts = [
        pytree.tree_unflatten(out[i * n : (i + 1) * n], structure) for i in range(2 + plan.saves)
    ]
    return Solution(parts[0], parts[1], plan.stats, parts[2:])


def functional_in_graph(
    f: nn.Module, z0: Any, args: Sequence[Any], options: dict[str, Any]
) -> Solution:
    """The call with adjoint="functional", which the compiler traces to its last operation."""
    y0 = options.pop("y0", None)
    options.pop("residual_mask", None)  # no residual is measured here
    leaves, structure = pytree.tree_flatten(z0)
    second = [] if y0 is None else pytree.tree_leaves(y0)
    constants = _constants(leaves[0].device, options)
    of_parameters, parameters = with_parameters(f)
    values, form = pytree.tree_flatten([parameters, *args])
    places = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
    device_type, enabled, dtype = constants.autocast
    kept = constants.state

    def call(_: int, state: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
        every = list(values)
        for place, value in zip(places, given, strict=True):
            every[place] = value
        with torch.autocast(device_type, dtype=dtype, enabled=enabled, cache_enabled=False):
            out = of_parameters(
                pytree.tree_unflatten(list(state), structure), *pytree.tree_unflatten(every, form)
            )
        result = pytree.tree_leaves(out)
        if [value.shape for value in result] != [leaf.shape for leaf in leaves]:
            raise ValueError("f: expected a result with the structure and the shapes of z0")
        if any(value.dtype not in FLOAT_STATES[kept] for value in result):
            raise TypeError(f"state: expected one that is no narrower than f, got {kept}")
        return result

    def compare(back: Any, start: Any, end: Any, found: Any) -> Any:
        return spoiled(back, start, end, found, constants.check, kept)

    read = [leaf.dtype for leaf in leaves]
    run = Run(call, constants.betas, len(leaves), y0 is not None, read, constants.wide)
    run.compare = compare
    # Views: the compiler takes no tensor twice.
    start = [leaf.view_as(leaf).to(kept) for leaf in (*leaves, *second)]
    tensors = [*start, *(values[place].view_as(values[place]) for place in places)]
    ends = run.differentiable(tensors) if torch.is_grad_enabled() else run.forward(tensors)
    z, y = (run.reading(part) for part in (ends[: len(leaves)], ends[len(leaves) :]))
    z, y = pytree.tree_unflatten(z, structure), pytree.tree_unflatten(y, structure)
    return Solution(z, y, constants.stats)


@dataclass
class _Constants:
    """What a call with adjoint="functional" is made of beside tensors."""

    betas: list[float]
    state: torch.dtype
    check: bool | float
    wide: bool
    autocast: tuple[str, bool, torch.dtype]
    stats: Stats


@torch.compiler.assume_constant_result
def _constants(device: torch.device, options: dict[str, Any]) -> _Constants:
    """Called once, while the graph is traced: the options, checked."""
    known = {"beta", "max_steps", "state", "adjoint", "check", "accumulate", "rng"}
    for name in options.keys() - known:
        raise ValueError(
            f"{name}: expected to be left out with adjoint='functional' in a compiled graph, got "
            f"{options[name]!r}; choose another adjoint"
        )
    if options.get("rng", "auto") != "none":
        raise ValueError(
            "rng: expected 'none' with adjoint='functional' in a compiled graph, which does not "
            "replay random numbers; give rng='none' if f draws none, or choose another adjoint"
        )
    options = with_defaults(options)
    schedule = Schedule(options["beta"], drawn(options["max_steps"]), exact=False)
    state, steps = options["state"], schedule.max_steps
    check_functional(state, schedule)
    name = str(state).removeprefix("torch.")
    return _Constants(
        betas=schedule.numbers,
        state=state,
        check=options["check"],
        wide=options["accumulate"] == "float32",
        autocast=autocast_state(device)[-1],
        stats=Stats(steps, name, "functional", state_bytes=0),
    )


def _taken_apart(tree: Any) -> tuple[list[Any], Any]:
    """The leaves, and the tree with their numbers in their places: a constant for the compiler."""
    leaves, structure = pytree.tree_flatten(tree)
    return leaves, pytree.tree_unflatten(list(range(len(leaves))), structure)


@torch.compiler.assume_constant_result
def _plan(
    owner: nn.Module,
    layer: bool,
    z0: Any,
    y0: Any,
    args: Any,
    arguments: list[tuple[bool, int, Any]],
    beta: Any,
    options: dict[str, Any],
    masked: bool,
    device: torch.device,
) -> Plan:
    """Called once, while the graph is traced, under the conditions for which it is traced."""
    options = with_defaults(options)
    values = {
        "layer": layer,
        "z0": z0,
        "y0": y0,
        "args": args,
        "arguments": arguments,
        "beta": beta,
        "options": options,
        "masked": masked,
    }
    return Plan(owner, values, autocast_state(device))
