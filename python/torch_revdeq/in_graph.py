"""A call of ``solve`` as torch.compile traces it: taken apart into tensors and constants.

Imported by the compiler alone, for it imports the compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .conditions import autocast_state
from .opaque import Plan
from .solution import Solution


def solve_in_graph(
    owner: nn.Module, f: nn.Module, z0: Any, args: Sequence[Any], options: dict[str, Any]
) -> Solution:
    """The call, as the compiler traces it. `owner` is f itself, or has it as its attribute f."""
    leaves, start = _taken_apart(z0)
    y0 = options.pop("y0", None)
    second, second_form = ([], None) if y0 is None else _taken_apart(y0)
    beta = options.pop("beta", 0.5)
    learned = [beta] if isinstance(beta, Tensor) else []
    values, form = _taken_apart(list(args))
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
    plan = _plan(owner, layer, start, second_form, form, arguments, number, options, device)
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
    device: torch.device,
) -> Plan:
    """Called once, while the graph is traced, under the conditions for which it is traced."""
    values = {
        "layer": layer,
        "z0": z0,
        "y0": y0,
        "args": args,
        "arguments": arguments,
        "beta": beta,
        "options": options,
    }
    return Plan(owner, values, autocast_state(device))
