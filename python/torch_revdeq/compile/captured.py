"""Find the compiled graphs of f for the current tensors, using TorchDynamo.

Dynamo traces f once for each form of its tensors, and guards everything else that f reads:
attributes, flags, globals, closures. Here its guards are checked once per solve, without running f:
the result is the graph they accept and the tensors it reads, including parameters and closed-over
tensors.

Imported when the first solve is compiled, because it imports the compiler.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch._C._dynamo.eval_frame import reset_code
from torch._dynamo import config as dynamo_config
from torch._dynamo.convert_frame import compile_lock
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._dynamo.variables.base import AttributeMutationNew, ValueMutationNew
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from ..adjoints.problem import Problem
from ..evaluation.flat_function import LEAF
from ..runtime.saved import saved_apart
from .graphs import Graphs, compiled_graphs
from .refusal import Refused


class _Met(threading.local):
    """What Dynamo found in this thread."""

    found: tuple[_Traced, list[Any]] | None = None  # the graph that it accepted, and its inputs
    tracing = ExitStack()  # settings that hold until a graph is traced


_met = _Met()

_SWITCHED_OFF = object()

_SOUND = {
    "skip_nnmodule_hook_guards": False,  # module hooks registered or removed later
    "skip_no_tensor_aliasing_guards_on_parameters": False,  # parameters tied later
}
"""Guards that Dynamo skips by default for speed."""


@dataclass
class Captured:
    """f for one solve.

    Attributes:
        graphs: f, compiled.
        inputs: the tensors that the graphs read.
        state: for each leaf of the state, the index of its input; None if f does not read it.
        arguments: the same for each tensor in f's arguments; None also for a repeated one.
        others: the other inputs.
        outputs: for each leaf that f returns, the index of the graphs' output.
    """

    graphs: Graphs
    inputs: list[Tensor]
    state: list[int | None]
    arguments: list[int | None]
    others: list[int]
    outputs: list[int]


_LEFT_CHANGED = ("automatic_dynamic_shapes", "assume_static_by_default")
"""Set by a call with dynamic=False, which does not reset it if it compiled no frame."""


class _Traced:
    """A graph traced by Dynamo. It is compiled when it is first needed after tracing."""

    def __init__(self, function: GraphModule) -> None:
        self.function = function
        results: Any = function.graph.output_node().args[0]
        self.stand_ins = tuple(torch.empty(0) for _ in results)  # for what it would return
        self.refused: str | None = None
        self.graphs: Graphs | None = None

    def run(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Runs instead of the graph: notes that it was accepted."""
        _met.found = self, list(inputs)
        return self.stand_ins

    def compiled(self, inputs: list[Tensor], state: list[int]) -> Graphs:
        """Both graphs, with these inputs as the state; Refused if they cannot be compiled."""
        if self.refused is None and self.graphs is None:
            try:
                # Tensors saved here are not part of what the solve saves.
                with saved_apart():
                    self.graphs = compiled_graphs(self.function, inputs, state)
            except Refused as reason:
                self.refused = str(reason)
            except Exception as error:  # of any kind: the solver can run without graphs
                kind = type(error).__name__
                raise Refused(f"the compiler fails: {kind}: {_first_line(error)}") from error
        if self.graphs is None:
            raise Refused(self.refused or "it has no graph")
        return self.graphs


def _backend(function: GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
    """Take a graph from Dynamo; Refused for one with side effects.

    Dynamo would run the side effects with the placeholder tensors returned here.
    """
    tx: Any = InstructionTranslator.current_tx()
    effects = tx.output.side_effects
    for variable in effects.id_to_variable.values():
        new = isinstance(variable.mutation_type, (AttributeMutationNew, ValueMutationNew))
        if not new and effects.is_modified(variable):
            raise Refused("f changes what it holds (an attribute, a list, a dict, a global)")
    if effects.tensor_hooks or effects.save_for_backward:
        raise Refused("f registers hooks on tensors")
    if tx.output.random_calls:
        raise Refused("f draws random numbers from Python's random")
    _met.tracing.enter_context(dynamo_config.patch(_SOUND))  # guards are made after this
    return _Traced(function).run


def _new_entry() -> Callable[..., Any]:
    """The function that Dynamo traces. Each has its own code, as Dynamo counts graphs by code."""

    def entry(f: Any, z: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # If torch.compile is switched off, this runs eagerly, and must not run f.
        return f(z, *args, **kwargs) if torch.compiler.is_dynamo_compiling() else _SWITCHED_OFF

    entry.__code__ = code = entry.__code__.replace()
    compiled = torch.compile(entry, backend=_backend, fullgraph=True, dynamic=False)
    weakref.finalize(entry, reset_code, code).atexit = False  # Dynamo would keep the graphs
    return compiled


@dataclass
class _Forms:
    """Results for one f, by the form of its tensors."""

    entries: dict[Hashable, Callable[..., Any]] = field(default_factory=dict)
    refused: dict[Hashable, str] = field(default_factory=dict)


_known: WeakKeyDictionary[Any, dict[Any, _Forms]] = WeakKeyDictionary()


def captured(problem: Problem, *, anew: bool) -> Captured:
    """f of this solve as compiled graphs; Refused if it cannot be.

    A refusal is remembered, because no guard covers it, unless `anew`. Only one thread compiles at
    a time: tracers replace ``nn.Module.__call__``.
    """
    with compile_lock:
        return _captured(problem, anew=anew)


def _captured(problem: Problem, *, anew: bool) -> Captured:
    mapping = problem.mapping
    leaves = [as_state(leaf).detach().requires_grad_() for leaf in problem.z0]
    # Dynamo would read .grad of a computed tensor, and torch would warn.
    aliases = {id(t): t if t.is_leaf else t.detach().requires_grad_() for t in problem.tensors}
    given = [aliases[id(t)] for t in problem.tensors]
    forms, key = _forms_of(mapping.f), tuple(map(_form, (*leaves, *given)))
    key = (key, torch.get_num_threads())
    if forms.refused and not anew and (again := _again(key, problem)) in forms.refused:
        raise Refused(forms.refused[again])
    if key not in forms.entries:
        forms.entries[key] = _new_entry()
    try:
        return _ask(forms.entries[key], problem, leaves, given)
    except Refused as reason:
        if reason.lasts:
            forms.refused[_again(key, problem)] = str(reason)
        else:  # if made while torch.compile was switched off, it would stay that way
            del forms.entries[key]
        raise


def _again(key: Hashable, problem: Problem) -> Hashable:
    """The key under which a refusal is remembered: without a graph there are no guards."""
    flags = tuple(module.training for module in problem.evaluation.modules)
    return key, flags, problem.evaluation.autocast


def _ask(
    entry: Callable[..., Any], problem: Problem, leaves: list[Tensor], given: list[Tensor]
) -> Captured:
    mapping = problem.mapping
    args, kwargs = mapping.arguments(given)
    _met.found = None
    if dynamo_config.disable:
        raise Refused("torch.compile is switched off", lasts=False)
    dynamic = {name: getattr(dynamo_config, name) for name in _LEFT_CHANGED}
    try:
        # The training graph, so that results without grad are bitwise the same.
        with torch.enable_grad(), ExitStack() as _met.tracing:
            result = entry(mapping.f, mapping.unflatten(leaves), args, kwargs)
    except FailOnRecompileLimitHit as error:
        raise Refused(
            "f, or what it reads, had more forms than torch._dynamo.config.recompile_limit"
        ) from error
    except (TorchDynamoException, RuntimeError) as error:
        inner = getattr(error, "inner_exception", None)
        if isinstance(inner, Refused):
            raise inner from None
        if "found no compiled frames" not in str(error):
            raise Refused(f"torch.compile cannot trace f: {_first_line(error)}") from error
        result = _SWITCHED_OFF
        for name, value in dynamic.items():
            setattr(dynamo_config, name, value)
    if result is _SWITCHED_OFF:
        raise Refused("torch.compile is switched off", lasts=False)
    found: Any = _met.found
    _met.found = None
    if found is None:
        raise Refused("f has no operations")
    traced, inputs = found
    out, structure = ([result], LEAF) if type(result) is Tensor else pytree.tree_flatten(result)
    places = {id(stand_in): i for i, stand_in in enumerate(traced.stand_ins)}
    if structure != mapping.structure or any(id(leaf) not in places for leaf in out):
        raise Refused("f does not return new tensors in the structure of z0")
    if any(type(t) not in (Tensor, torch.nn.Parameter) for t in inputs):
        raise Refused("f reads a subclass of Tensor, or a number that varies")
    at = {id(t): i for i, t in enumerate(inputs)}
    if len(at) < len(inputs):
        raise Refused("f reads one tensor where it read two when it was traced")
    state, arguments = ([at.pop(id(t), None) for t in part] for part in (leaves, given))
    others, outputs = sorted(at.values()), [places[id(leaf)] for leaf in out]
    graphs = traced.compiled(inputs, [i for i in state if i is not None])
    return Captured(graphs, inputs, state, arguments, others, outputs)


def as_state(leaf: Tensor) -> Tensor:
    """The leaf in the memory layout of the solve's states, which start as ``empty_like`` of it."""
    if leaf.is_contiguous():
        return leaf
    like = torch.empty_like(leaf, device="meta")
    return leaf if like.stride() == leaf.stride() else torch.empty_like(leaf).copy_(leaf)


def _forms_of(f: Any) -> _Forms:
    """The results for f. A method is looked up by its object."""
    owner, name = getattr(f, "__self__", f), getattr(f, "__func__", None)
    try:
        return _known.setdefault(owner, {}).setdefault(name, _Forms())
    except TypeError as error:  # no weak reference, or no hash
        raise Refused("f is an object that cannot be a key of a WeakKeyDictionary") from error


def _form(t: Tensor) -> Hashable:
    return t.shape, t.stride(), t.dtype, t.device, t.requires_grad


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
