"""A call of ``solve`` as torch.compile traces it: split into tensors and constants.

Imported only while compiling, because it imports the compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch.fx.experimental.symbolic_shapes import guard_scalar, has_static_value
from torch.utils import _pytree as pytree

from ..adjoints.functional import Run, check_functional, poisoned, with_parameters
from ..evaluation.effects.attributes import CONTAINERS
from ..evaluation.effects.modules import modules_of
from ..evaluation.replay import autocast_state
from ..iteration.beta import BetaSchedule
from ..options.call import drawn
from ..options.reading import with_defaults
from ..solution import Solution, Stats
from ..state.floating import FLOAT_STATES
from .breaks import BREAKS
from .operator import CallSite, node_of_aux


def solve_in_graph(
    owner: nn.Module, f: Any, z0: Any, args: Sequence[Any], options: dict[str, Any]
) -> Solution:
    """The call, as the compiler traces it. `owner` is f itself, or has f as its attribute.

    `options` are those of ``solve``. Tensors in them and in `args` become inputs of the operator,
    and so do numbers that the compiler treats as variables because they differed between calls: one
    graph serves them all. Everything else is a constant of the graph, and the compiler traces again
    when it changes.
    """
    starts, start = _taken_apart(z0)
    values, call = _taken_apart((list(args), _with_numbers(options)))
    tensors: list[Tensor] = []
    floats: list[Tensor] = []
    ints: list[int] = []
    leaves: list[tuple[str, int, Any]] = []
    for value in values:
        if isinstance(value, FunctionType):
            id(value)  # makes the compiler guard this function, not any with the same code
            leaves.append(("constant", 0, value))
        elif isinstance(value, Tensor):
            leaves.append(("tensor", len(tensors), None))
            tensors.append(value)
        elif not isinstance(value, (bool, int, float)):
            leaves.append(("constant", 0, value))
        elif isinstance(value, bool) or has_static_value(value):
            leaves.append(("constant", 0, guard_scalar(value)))
        elif isinstance(value, int):
            leaves.append(("int", len(ints), None))
            ints.append(value)
        else:
            leaves.append(("float", len(floats), None))
            # A product, which the compiler can turn a variable number into a tensor with.
            floats.append(torch.ones((), dtype=torch.float64, device="cpu") * value)
    save_at = options.get("save_at", ())
    saves = len(save_at) if isinstance(save_at, (tuple, list)) else 0  # otherwise it raises
    aux = options.get("aux", "sum") if options.get("has_aux", False) else None
    steps = guard_scalar(options.get("max_steps", 8)) if aux == "stack" else 0
    known = {"layer": owner is not f, "saves": saves, "aux": aux, "steps": steps}
    plan = _plan(owner, known, start, call, leaves, starts[0].device)
    parameters = [p for p in f.parameters() if p.requires_grad]
    needs = [t.requires_grad for t in [*starts, *tensors]]
    out = torch.ops.torch_revdeq.solve(
        starts, tensors, floats, ints, parameters, plan.key, needs, torch.is_grad_enabled()
    )
    n, structure = len(starts), pytree.tree_structure(z0)
    parts = [
        pytree.tree_unflatten(out[i * n : (i + 1) * n], structure) for i in range(2 + plan.saves)
    ]
    beside = None
    if aux is not None:
        beside = _aux(plan.key, -1, out[n * (2 + plan.saves) :])
    return Solution(parts[0], parts[1], plan.stats, parts[2:], beside)


def _aux(key: int, node: int, leaves: Sequence[Tensor]) -> Any:
    """Aux as f returns it, from its leaves, in the structure found while tracing."""
    kind = _kind(key, node)
    if kind == "leaf":
        return leaves[_child(key, node, 0)]
    parts = [_aux(key, _child(key, node, i), leaves) for i in range(_count(key, node))]
    if kind == "dict":
        return {_name(key, node, i): part for i, part in enumerate(parts)}
    return tuple(parts) if kind == "tuple" else parts


@torch.compiler.assume_constant_result
def _kind(key: int, node: int) -> str:
    return node_of_aux(key, node)[0]


@torch.compiler.assume_constant_result
def _count(key: int, node: int) -> int:
    return len(node_of_aux(key, node)[2])


@torch.compiler.assume_constant_result
def _child(key: int, node: int, i: int) -> int:
    return node_of_aux(key, node)[2][i]


@torch.compiler.assume_constant_result
def _name(key: int, node: int, i: int) -> Any:
    return node_of_aux(key, node)[1][i]


def functional_in_graph(
    f: nn.Module, z0: Any, args: Sequence[Any], options: dict[str, Any]
) -> Solution:
    """The call with adjoint="functional", which the compiler traces completely."""
    y0 = options.pop("y0", None)
    options.pop("residual_mask", None)  # no residual is measured here
    kwargs = dict(options.pop("kwargs", None) or {})
    leaves, structure = pytree.tree_flatten(z0)
    second = [] if y0 is None else pytree.tree_leaves(y0)
    constants = _constants(leaves[0].device, pytree.tree_map(_specialized, options))
    of_parameters, parameters = with_parameters(f)
    values, form = pytree.tree_flatten(([parameters, *args], kwargs))
    places = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
    device_type, enabled, dtype = constants.autocast
    kept = constants.state

    def call(k: int, state: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
        every = list(values)
        for place, value in zip(places, given, strict=True):
            every[place] = value
        more, keywords = pytree.tree_unflatten(every, form)
        if constants.pass_step:
            keywords = {**keywords, "step": k // 2}
        with torch.autocast(device_type, dtype=dtype, enabled=enabled, cache_enabled=False):
            out = of_parameters(pytree.tree_unflatten(list(state), structure), *more, **keywords)
        result = pytree.tree_leaves(out)
        if [value.shape for value in result] != [leaf.shape for leaf in leaves]:
            raise ValueError("f: expected a result with the structure and the shapes of z0")
        if any(value.dtype not in FLOAT_STATES[kept] for value in result):
            raise TypeError(f"state: expected a dtype at least as wide as f's, got {kept}")
        return result

    def compare(back: Any, start: Any, end: Any, found: Any) -> Any:
        return poisoned(back, start, end, found, constants.check, kept)

    read = [leaf.dtype for leaf in leaves]
    run = Run(
        call, constants.betas, len(leaves), y0 is not None, read, constants.accumulate_float32
    )
    run.compare = compare
    # Views: the compiler accepts no tensor twice.
    start = [leaf.view_as(leaf).to(kept) for leaf in (*leaves, *second)]
    tensors = [*start, *(values[place].view_as(values[place]) for place in places)]
    ends = run.differentiable(tensors) if torch.is_grad_enabled() else run.forward(tensors)
    z, y = (run.reading(part) for part in (ends[: len(leaves)], ends[len(leaves) :]))
    z, y = pytree.tree_unflatten(z, structure), pytree.tree_unflatten(y, structure)
    return Solution(z, y, constants.stats)


def _with_numbers(options: dict[str, Any]) -> dict[str, Any]:
    """The options with a function beta evaluated for every step, so that the compiler traces it."""
    beta, steps = options.get("beta"), options.get("max_steps", 8)
    if isinstance(beta, FunctionType) and isinstance(steps, int):
        return {**options, "beta": [beta(n) for n in range(steps)]}
    return options


@torch.compiler.assume_constant_result
def make_break(number: int) -> None:
    """Create a graph break beforehand: it cannot be created while tracing."""
    BREAKS[number]()


@torch.compiler.assume_constant_result
def written_before(f: nn.Module) -> bool:
    """Whether the compiled code writes what f reads, before the call that is being traced.

    A graph writes attributes, elements of containers and input tensors only after or while it runs:
    f, which runs inside it, would see the old values.
    """
    tx: Any = InstructionTranslator.current_tx()
    held, tensors = set(), set()
    for module in modules_of(f):
        held.add(id(module))
        held.update(id(value) for value in vars(module).values() if isinstance(value, CONTAINERS))
        every = (*vars(module).values(), *module._parameters.values(), *module._buffers.values())
        tensors.update(id(value) for value in every if isinstance(value, Tensor))
    effects = tx.output.side_effects
    for var in (*effects.store_attr_mutations, *effects.id_to_variable.values()):
        if id(vars(var).get("value")) in held and effects.is_modified(var):
            return True
    if any(key in held and effects.is_modified(v) for key, v in effects.id_to_variable.items()):
        return True
    for node in tx.output.root_tracer.graph.find_nodes(op="placeholder"):
        given, fake = node.meta.get("grapharg"), node.meta.get("example_value")
        if isinstance(fake, Tensor) and fake._version > 0 and id(given.example) in tensors:
            return True
    return False


@dataclass
class _Constants:
    """The parts of a call with adjoint="functional" that are not tensors."""

    betas: list[float]
    state: torch.dtype
    check: bool | float
    accumulate_float32: bool
    pass_step: bool
    autocast: tuple[str, bool, torch.dtype]
    stats: Stats


@torch.compiler.assume_constant_result
def _constants(device: torch.device, options: dict[str, Any]) -> _Constants:
    """The checked options. Called once, while the graph is traced."""
    known = {"beta", "max_steps", "state", "adjoint", "check", "accumulate", "rng", "pass_step"}
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
    schedule = BetaSchedule(options["beta"], drawn(options["max_steps"]), exact=False)
    state, steps = options["state"], schedule.max_steps
    check_functional(state, schedule)
    name = str(state).removeprefix("torch.")
    return _Constants(
        betas=schedule.numbers,
        state=state,
        check=options["check"],
        accumulate_float32=options["accumulate"] == "float32",
        pass_step=options["pass_step"],
        autocast=autocast_state(device)[-1],
        stats=Stats(steps, name, "functional", state_bytes=0),
    )


def _taken_apart(tree: Any) -> tuple[list[Any], Any]:
    """The leaves, and the tree with their indices instead, a constant for the compiler."""
    leaves, structure = pytree.tree_flatten(tree)
    return leaves, pytree.tree_unflatten(list(range(len(leaves))), structure)


def _specialized(value: Any) -> Any:
    """A number as a constant of the graph, which is traced again when it changes."""
    return guard_scalar(value) if isinstance(value, (int, float)) else value


@torch.compiler.assume_constant_result
def _plan(
    owner: nn.Module,
    known: dict[str, Any],
    z0: Any,
    call: Any,
    leaves: list[tuple[str, int, Any]],
    device: torch.device,
) -> CallSite:
    """Register the call site. Called once, under the conditions for which the graph is traced."""
    compiler: Any = InstructionTranslator.current_tx().output.compiler_fn
    inductor = getattr(compiler, "_compiler_name", None) == "inductor"
    values = {**known, "z0": z0, "call": call, "leaves": leaves, "inductor": inductor}
    return CallSite(owner, values, autocast_state(device))
