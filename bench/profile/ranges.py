"""Names for what a solve is doing, as ranges of torch.profiler and of NVTX.

The solver knows nothing of them: they are put around its functions from outside, for as long as a
profile lasts, and nothing is left of them afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.profiler import record_function

import revdeq_kernels as rk
from bench.solver.methods import Run
from torch_revdeq.adjoints import problem, reconstruction, vjp
from torch_revdeq.evaluation import replay
from torch_revdeq.state import exact, floating, pair

KERNEL = "kernel: "
CHECK = "check"
# What the ops of a pair do, and to which half step: 2 n + this.
PAIR = {
    "update_y": (0, "update"),
    "update_z": (1, "update"),
    "invert_y": (0, "invert"),
    "invert_z": (1, "invert"),
    "invert_z_adjoint_y": (1, "invert + adjoint"),
    "invert_y_adjoint_z": (0, "invert + adjoint"),
    "invert_y_adjoint_z0": (0, "invert + adjoint"),
}
NOT_IN_PLACE = ("quantize", "dequantize", "residual")


@contextmanager
def named(name: str, device: torch.device) -> Iterator[None]:
    """One range."""
    with record_function(name):
        if device.type != "cuda":
            yield
            return
        torch.cuda.nvtx.range_push(name)
        try:
            yield
        finally:
            torch.cuda.nvtx.range_pop()


@contextmanager
def ranges(run: Run, device: torch.device) -> Iterator[None]:
    """Name what `run` does, inside."""
    names = _Names(device)
    with ExitStack() as stack:
        for target, attribute, replacement in names.patches(run):
            stack.enter_context(patch.object(target, attribute, replacement))
        for owner in (exact.ExactPair, floating.FloatPair):
            wrapped = {name: names.kernel(op.__name__, op) for name, op in owner.ops.items()}
            stack.enter_context(patch.dict(owner.ops, wrapped))
        yield


class _Names:
    """Where the solve is, as far as a name depends on it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.replays = 0
        self.product_of: int | None = None  # the half step whose product is next

    def patches(self, run: Run) -> Iterator[tuple[Any, str, Any]]:
        """What is replaced, and by what."""
        evaluation, check = replay.Evaluation, reconstruction.Check
        yield evaluation, "__call__", self.evaluate(evaluation.__call__)
        yield evaluation, "replay", self.replay(evaluation.replay)
        yield vjp.VJPs, "__call__", self.vjp(vjp.VJPs.__call__)
        yield vjp, "engine_vjp", self.grad(vjp.engine_vjp)
        yield torch.autograd, "grad", self.grad(torch.autograd.grad)
        yield Run, "forward", self.around("forward", Run.forward)
        for owner, name in (
            (check, "__init__"),
            (check, "after"),
            (problem.Problem, "check_range"),
        ):
            yield owner, name, self.around(CHECK, getattr(owner, name))
        for name, (second, what) in PAIR.items():
            yield pair.Pair, name, self.of_pair(second, what, getattr(pair.Pair, name))
        for name in rk.__all__:
            if name.endswith("_") or name in NOT_IN_PLACE:
                yield rk, name, self.kernel(name, getattr(rk, name))
        if run.method.adjoint is None:  # the loop calls f and torch by itself
            yield run.model.f, "forward", self.loop_f(run)
            yield torch, "lerp", self.kernel("lerp", torch.lerp)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, in a range of one name."""

        @wraps(function)
        def wrapped(*args: Any, **options: Any) -> Any:
            with named(name, self.device):
                return function(*args, **options)

        return wrapped

    def kernel(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """An op of this project, or what the loop has in its place."""
        return self.around(KERNEL + name, function)

    def evaluate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """f, forward or again on the way back."""

        def wrapped(evaluation: Any, k: int, *rest: Any) -> list[Tensor]:
            outer, self.product_of = self.product_of, None  # f may differentiate something itself
            again = " again" if self.replays else ""
            try:
                with named(f"half step {k}: f{again}", self.device):
                    return original(evaluation, k, *rest)
            finally:
                self.product_of = outer

        return wrapped

    def replay(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Between its beginning and its end f is evaluated again."""

        @contextmanager
        def wrapped(evaluation: Any, leaves: Sequence[Tensor]) -> Iterator[None]:
            with original(evaluation, leaves):
                self.replays += 1
                try:
                    yield
                finally:
                    self.replays -= 1

        return wrapped

    def vjp(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The next call of the engine is the product of half step k."""

        def wrapped(this: Any, k: int, *rest: Any) -> Any:
            outer, self.product_of = self.product_of, k
            try:
                return original(this, k, *rest)
            finally:
                self.product_of = outer

        return wrapped

    def grad(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The engine, for one product or for the whole backward pass."""

        @wraps(original)
        def wrapped(*args: Any, **options: Any) -> Any:
            k = self.product_of
            name = "backward" if k is None else f"half step {k}: product"
            with named(name, self.device):
                return original(*args, **options)

        return wrapped

    def of_pair(self, second: int, what: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """A half step of the pair, or its way back."""

        @wraps(original)
        def wrapped(this: Any, *args: Any) -> Any:
            step = args[0] if isinstance(args[0], int) else 0  # the last pass has no number
            with named(f"half step {2 * step + second}: {what}", self.device):
                return original(this, *args)

        return wrapped

    def loop_f(self, run: Run) -> Callable[..., Any]:
        """f of the loop, which does not number its half steps."""
        original, calls = run.model.f.forward, 0

        @wraps(original)
        def wrapped(*args: Any, **options: Any) -> Any:
            nonlocal calls
            k, calls = calls % (2 * run.steps), calls + 1
            with named(f"half step {k}: f", self.device):
                return original(*args, **options)

        return wrapped
