"""f as two compiled graphs: its values and what its product saves, and the product itself.

The first graph runs in the forward pass and again in the backward pass. It runs the same code on
the same numbers, so f is bitwise the same in both, whatever the compiler fuses. These are the two
graphs that torch.compile makes of f in training, called without its guards and autograd.

Imported when the first graph is made, because it imports the compiler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._functorch.aot_autograd import aot_export_joint_simple
from torch._guards import TracingContext, detect_fake_mode, tracing
from torch._inductor import config as inductor_config
from torch._inductor.compile_fx import compile_fx_inner, partition_fn
from torch._inductor.decomposition import select_decomp_table
from torch.fx import GraphModule

from .refusal import Refused

Boxed = Callable[[list[Any]], Sequence[Any]]
"""A compiled graph. It empties the list that it is given."""


@dataclass
class Graphs:
    """f compiled, as a function of the tensors that its graph reads.

    Attributes:
        forward: from these tensors to f's outputs, followed by what ``backward`` needs.
        backward: from that, a cotangent per output, and the sums so far, to one item per tensor:
            the gradient of a leaf of the state, None, or the new sum.
        outputs: the number of outputs of f.
        summed: which of the tensors have a sum.
        strides: the strides of the tensors that the graphs were made for.
        cotangents: the strides of the cotangents.
    """

    forward: Boxed
    backward: Boxed
    outputs: int
    summed: list[int]
    strides: list[tuple[int, ...]]
    cotangents: list[tuple[int, ...]]


HALF = (torch.bfloat16, torch.float16)


def empty_sum(t: Tensor) -> Tensor:
    """Memory for the sum of a tensor's gradients: dense, in float32 or wider."""
    return torch.empty_like(t, dtype=torch.float32 if t.dtype in HALF else t.dtype)


def compiled_graphs(
    function: GraphModule, inputs: Sequence[Tensor], state: Sequence[int]
) -> Graphs:
    """Both graphs of a function of tensors like `inputs`, with the same requires_grad.

    `state` says which of them are leaves of the state. Refused: a function that writes to its
    inputs, returns a tensor without gradient, or draws random numbers; one whose graphs are not
    bitwise repeatable, or whose gradient differs from eager mode.
    """
    joint = _joint(function, inputs)
    placeholders = [node.meta["val"] for node in joint.graph.find_nodes(op="placeholder")]
    results: Any = function.graph.output_node().args[0]
    outputs = len(placeholders) - len(inputs)
    if outputs != len(results):
        raise Refused("f returns a leaf without a gradient, such as a detached one")
    mode: Any = detect_fake_mode(placeholders)
    with tracing(TracingContext(mode)), torch.no_grad():
        first, second = partition_fn(
            joint, placeholders, num_fwd_outputs=outputs, static_lifetime_input_indices=[]
        )
        forward = _compiled(first, range(outputs), back=False)
        ends = forward(list(inputs))
        kept = ends[outputs:]
        _take_strides(second, kept, outputs)
        with mode:
            summed = _add_sums(second, placeholders[: len(inputs)], state)
        backward = _compiled(second, range(len(inputs)), back=True)
        like = placeholders[len(inputs) :]
        cotangents = [_random(t, end) for t, end in zip(like, ends, strict=False)]
        sums = [empty_sum(inputs[i]).zero_() for i in summed]
        grads = backward([*kept, *cotangents, *sums])
        if not all(map(_is_same, ends, forward(list(inputs)))):
            raise Refused("its graph is not bitwise repeatable (atomic additions, for example)")
    _compare(function, inputs, cotangents, grads, _coarsest(joint))
    strides = [[tuple(t.stride()) for t in part] for part in (inputs, cotangents)]
    return Graphs(_bare(forward), _bare(backward), outputs, summed, *strides)


def _add_sums(graph: GraphModule, inputs: Sequence[Tensor], state: Sequence[int]) -> list[int]:
    """Make the graph add gradients to the sums, its last inputs; returns which inputs have one.

    It also returns the state's gradients in the state's memory layout, so that no half step has to
    convert them.
    """
    output, ops = graph.graph.output_node(), torch.ops.aten
    results: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    summed = [i for i, node in enumerate(results) if node is not None and i not in state]
    last = graph.graph.find_nodes(op="placeholder")[-1]
    for i in summed:
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"sum_{i}")
        last.meta["val"] = empty_sum(inputs[i])
        results[i] = _inserted(graph, ops.add.Tensor, last, results[i])
    for i in state:
        if results[i] is not None and inputs[i].is_contiguous():  # removed where it does nothing
            options = {"memory_format": torch.contiguous_format}
            results[i] = _inserted(graph, ops.clone.default, results[i], **options)
    output.args = (tuple(results),)
    graph.recompile()
    return summed


def _inserted(graph: GraphModule, target: Any, *nodes: Any, **options: Any) -> torch.fx.Node:
    with graph.graph.inserting_before(graph.graph.output_node()):
        node = graph.graph.call_function(target, nodes, options)
    node.meta["val"] = target(*(n.meta["val"] for n in nodes), **options)
    return node


def _random(like: Tensor, end: Tensor) -> Tensor:
    """A cotangent in the layout that the second graph was made for."""
    generator = torch.Generator(end.device).manual_seed(0)
    numbers = torch.randn(end.shape, generator=generator, device=end.device).to(end.dtype)
    return torch.empty_strided(end.shape, like.stride(), dtype=end.dtype, device=end.device).copy_(
        numbers
    )


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Whether all elements are equal, counting NaN as equal to NaN."""
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _coarsest(graph: GraphModule) -> float:
    """The unit in the last place of the lowest precision in the graph."""
    values = [node.meta.get("val") for node in graph.graph.nodes]
    floats = [v.dtype for v in values if isinstance(v, Tensor) and v.is_floating_point()]
    return max(torch.finfo(dtype).eps for dtype in floats)


def _compare(
    function: GraphModule,
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    eps: float,
) -> None:
    """Refused if the gradients, as one vector, differ from eager mode in half the digits.

    Rounding errors of a usable gradient stay far below that; those of another function do not.
    """
    with torch.enable_grad():
        read = [t.detach().requires_grad_(t.requires_grad) for t in inputs]
        pairs = [
            (o, c) for o, c in zip(function(*read), cotangents, strict=True) if o.requires_grad
        ]
        places = [i for i, t in enumerate(read) if t.requires_grad]
        ends, seeds = zip(*pairs, strict=True) if pairs else ((), ())
        wanted = [read[i] for i in places]
        found = torch.autograd.grad(ends, wanted, seeds, allow_unused=True) if pairs else ()
    off = size = 0.0
    for i, want in zip(places, found, strict=False):
        got = grads[i]
        if want is None or got is None:
            other = want if got is None else got
            off += 0.0 if other is None else _square(other)
        else:
            off, size = off + _square(got - want), size + _square(want)
    if math.isfinite(size) and not off <= eps * size:
        raise Refused(
            "its graphs have another gradient than f in eager mode, with a relative difference of "
            f"{math.sqrt(off / max(size, math.ulp(0.0))):.2g}"
        )


def _square(t: Tensor) -> float:
    real = torch.view_as_real(t.detach()) if t.is_complex() else t.detach()
    return float(torch.linalg.vector_norm(real, dtype=torch.float64)) ** 2


def _bare(graph: Any) -> Boxed:
    """The compiled code, without Inductor's wrapper for the first call."""
    return getattr(graph, "current_callable", None) or graph


def _joint(function: GraphModule, inputs: Sequence[Tensor]) -> GraphModule:
    """The function and its vector-Jacobian product in one graph of plain, pure operations."""
    for name, held in (*function.named_parameters(), *function.named_buffers()):
        if held.requires_grad:
            raise Refused(f"f reads a tensor that the compiler takes for a constant ({name})")

    def called(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(*tensors))

    def copied(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.clone() for t in function(*tensors))

    try:
        joint = _exported(called, inputs)
    except RuntimeError as error:
        if "does not support outputs that alias" not in str(error):
            raise
        joint = _exported(copied, inputs)  # views, such as those of a linear layer's product
    for node in joint.graph.nodes:
        if node.op == "call_function" and draws_random_numbers(node):
            raise Refused(f"f draws random numbers ({node.target})")
    return joint


def _exported(called: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> GraphModule:
    decompositions: Any = select_decomp_table()
    # The solver's products run outside autocast, as autograd's do.
    with torch.enable_grad(), functorch_config.patch(backward_pass_autocast="off"):
        try:
            joint: Any = aot_export_joint_simple(
                called, tuple(inputs), trace_joint=True, decompositions=decompositions
            )
        except RuntimeError as error:
            if "does not support input mutations" in str(error):
                raise Refused("f writes to a tensor that it reads, such as a buffer") from error
            raise
    return joint


def draws_random_numbers(node: torch.fx.Node) -> bool:
    """Whether a graph operation draws random numbers; attention is tagged even without dropout."""
    target: Any = node.target
    if torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ()):
        return False
    names = [argument.name for argument in target._schema.arguments]
    if "dropout_p" not in names:
        return True
    place = names.index("dropout_p")
    given = node.args[place] if place < len(node.args) else node.kwargs.get("dropout_p", 0.0)
    return bool(given != 0.0)


def _compiled(graph: GraphModule, visible: Sequence[int], *, back: bool) -> Boxed:
    """A graph compiled by Inductor. The `visible` outputs have the memory layout of eager mode."""
    output = graph.graph.output_node()
    results: Any = output.args[0]
    nodes = [i for i in visible if isinstance(results[i], torch.fx.Node)]
    output.meta["user_visible_output_idxs"] = nodes
    inputs = [node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")]
    with inductor_config.patch(size_asserts=False):  # Dynamo's guards and ``laid_out`` check them
        return compile_fx_inner(graph, inputs, is_backward=back)


def _take_strides(backward: GraphModule, kept: Sequence[Any], cotangents: int) -> None:
    """Give the second graph the memory layout in which the first one saves tensors."""
    placeholders = backward.graph.find_nodes(op="placeholder")
    if len(placeholders) != len(kept) + cotangents:
        raise Refused("its graphs hand on something other than tensors")
    for node, tensor in zip(placeholders, kept, strict=False):
        like = node.meta["val"]
        if not isinstance(tensor, Tensor) or not isinstance(like, Tensor):
            raise Refused("its graphs hand on something other than tensors")
        if like.shape != tensor.shape or like.dtype != tensor.dtype:
            raise Refused("its graphs save tensors in another order than they read them")
        if like.stride() != tensor.stride():
            node.meta["val"] = like.as_strided(tensor.shape, tensor.stride())
