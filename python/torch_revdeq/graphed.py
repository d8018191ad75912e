"""``graphed``: a layer as two CUDA graphs, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .layer import RevDEQ
from .options.reading import with_defaults
from .runtime.cuda_graphs import check_capture


def graphed(layer: RevDEQ, *samples: Tensor, warmup: int = 3) -> RevDEQ:
    """Capture the layer's solve and backward pass with ``torch.cuda.make_graphed_callables``.

    A replay launches all kernels of all steps at once: for small states, whose steps run faster
    than Python can launch them. Shapes, options and the mode of the layer are those of the capture.
    In the other mode (train or eval) the layer runs as before.

    Args:
        layer: on a CUDA device. Its `max_steps` must be a number, `tol` and `on_step` None, `rng`
            "none" and, for an exact state, `frac_bits` an integer and `beta` numbers.
        samples: example inputs, on the layer's device, that require grad where later inputs will.
            torch captures on one stream per process, of the device that was current at the first
            capture: graphs on two devices need two processes.
        warmup: calls before the capture, at least 1, in which kernels are compiled and checked.

    Returns:
        The layer, whose forward now replays the graph and returns the same memory in every call.
        ``layer.stats`` belongs to the captured solve, with the numbers of the last replay;
        ``layer.stats.verify()`` reads its checks and raises if one failed. If a check fails, the
        gradient is NaN even without that call.

    Raises:
        ValueError: an option that a graph cannot hold; no samples, or samples on another device.
        RuntimeError: f draws random numbers, which the backward replay would not repeat.
    """
    if not samples:
        raise ValueError("samples: expected an example input, got none; pass one")
    options = with_defaults({"beta": layer.beta, **layer.options})
    frac_bits, state = options["frac_bits"], options["state"]
    doubles = any(t.dtype == torch.float64 for t in pytree.tree_leaves(samples[:1]))
    check_capture(
        options["tol"] or None,
        None if frac_bits == "auto" else frac_bits,
        options["beta"],
        options["rng"],
        options["max_steps"],
        exact=state == "exact" or (state == "auto" and not doubles),
        on_step=options["on_step"],
    )
    for sample in samples:
        if sample.device.type != "cuda":
            raise ValueError(
                f"samples: expected tensors on a CUDA device, got one on {sample.device}; move "
                "layer and samples there"
            )
    if warmup < 1:
        raise ValueError(
            f"warmup: expected at least 1, got {warmup}; kernels are checked before the capture"
        )
    device = samples[0].device
    before = torch.cuda.get_rng_state(device)
    with torch.cuda.device(device):
        layer(*(sample.detach() for sample in samples))
        if not torch.equal(before, torch.cuda.get_rng_state(device)):
            raise RuntimeError(
                "f: expected to draw no random numbers in a CUDA graph, got some (dropout?); put f "
                "in eval mode, or call the layer without a graph"
            )
        made: Any = torch.cuda.make_graphed_callables(
            layer, samples, num_warmup_iters=warmup, allow_unused_input=True
        )
    return made
