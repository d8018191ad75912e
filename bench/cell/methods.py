"""The ways to solve the equilibrium cell that are compared, and the gate before the stop-watch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from bench.cell.columns import MEMORY
from bench.core import timing
from bench.core.case import Call, Kind
from bench.solver.methods import Loop, State, compiled, lerp_loop
from bench.solver.peers import checkpoint_loop, torchdeq_loop
from revdeq_kernels.ops.cell import choice as cell_choice
from torch_revdeq import LinearCell, RevDEQ

TIMED = ("forward", "train")
PARTS = (*TIMED, MEMORY)
BETA, ACT = 0.5, "tanh"
# Features of x: few, since U x + b is computed once by everybody.
INPUTS = 32
GATE_ROWS = 257
# In which both solves of the gate's cells are at the limit.
TO_THE_LIMIT = 48


@dataclass(frozen=True)
class Problem:
    """A cell and its input; z begins with zeros."""

    cell: LinearCell
    x: Tensor
    steps: int

    @property
    def dtype(self) -> torch.dtype:
        """That of the parameters and the input."""
        return self.x.dtype


def make(features: int, rows: int, steps: int, dtype: torch.dtype, device: torch.device) -> Problem:
    """The same random numbers in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cell = LinearCell(INPUTS, features, ACT)
        x = torch.randn(rows, INPUTS)
    return Problem(cell.to(device, dtype), x.to(device, dtype), steps)


class Known(nn.Module):
    """The cell where U x + b is known, as a loop evaluates it: one `addmm` and the activation.

    z is rounded to the dtype of W, and what is returned is in that of z.
    """

    def __init__(self, cell: LinearCell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        """The next state."""
        w = self.cell.W
        return torch.tanh(torch.addmm(u, z.to(w.dtype), w.t())).to(z.dtype)


# ---- who is compared --------------------------------------------------------------------------

Solve = Callable[[Problem], Tensor]


@dataclass(frozen=True)
class Way:
    """One provider: from a problem to z at the end.

    `products` are those of a half step in training, each of a matrix of W's size with all rows: one
    forward, two of the gradients, and one more for who evaluates the cell again. `spared` are those
    of the first half step that it does without, forward and in training: z0 is zero, and nobody
    asks for its gradient. `parts` are those
    in which it is measured; `limit` says that it solves for the limit, and `digits` that what it
    keeps grows by them with the steps.
    """

    name: str
    solve: Solve
    kind: Kind = "alternative"
    products: int = 3
    spared: tuple[int, int] = (0, 0)
    parts: Sequence[str] = PARTS
    limit: bool = False
    digits: bool = False

    def operations(self, part: str, problem: Problem) -> int:
        """Multiplications and additions of all products that it computes, also those of U."""
        rows, d = len(problem.x), problem.cell.features
        each, of_inputs = (1, 1) if part == "forward" else (self.products, 2)
        products = each * 2 * problem.steps - self.spared[part != "forward"]
        return 2 * rows * d * (products * d + of_inputs * INPUTS)


def by_loop(loop: Loop, problem: Problem) -> Tensor:
    """A loop of the user's: U x + b is computed once, and y and z are in float32."""
    u = problem.cell.of_input(problem.x)
    z0 = torch.zeros_like(u, dtype=torch.float32)
    return loop(known(problem.cell), z0, u, BETA, problem.steps)


def by_layer(implementation: str, state: State, problem: Problem) -> Tensor:
    """RevDEQ, by one of its implementations."""
    return layer_of(problem.cell, problem.steps, state, implementation)(problem.x)


@lru_cache(maxsize=16)
def layer_of(cell: LinearCell, steps: int, state: State, implementation: str) -> RevDEQ:
    """The layer, which is made once."""
    return RevDEQ(cell, beta=BETA, max_steps=steps, state=state, implementation=implementation)


@lru_cache(maxsize=1)
def known(cell: LinearCell) -> Known:
    """The cell for the loops, which is made once."""
    return Known(cell)


SPARED = {"cpu": (1, 4)}
"""By implementation; the others take products of zeros."""


def ours(implementation: str) -> Way:
    """With an exact state."""
    solve = partial(by_layer, implementation, "exact")
    spared = SPARED.get(implementation, (0, 0))
    return Way(implementation, solve, "revdeq", products=4, spared=spared, digits=True)


def with_floats(implementation: str) -> Way:
    """With a float32 state, which does not come back from many steps."""
    solve = partial(by_layer, implementation, torch.float32)
    name = f"{implementation}, float32 state"
    return replace(ours(implementation), name=name, solve=solve, digits=False, parts=TIMED)


COMPOSITE = ours("composite")
"""The definition, by matmuls and the ops of the half steps."""


def ways(problem: Problem) -> list[Way]:
    """The providers that can run for such a cell."""
    found = [
        Way("eager loop", partial(by_loop, lerp_loop), spared=(0, 1)),
        Way("compiled loop", partial(by_loop, compiled(lerp_loop)), spared=(0, 1), parts=TIMED),
        Way(
            "torch checkpoint",
            partial(by_loop, checkpoint_loop),
            products=4,
            spared=(0, 1),
            parts=PARTS[1:],
        ),
        Way(
            "torchdeq IFT",
            partial(by_loop, partial(torchdeq_loop, ift=True)),
            products=2,  # it goes back by products for z alone
            limit=True,
        ),
        ours("solver"),
        COMPOSITE,
    ]
    w = problem.cell.W
    for name in ("triton", "gluon") if w.device.type == "cuda" else ("cpu",):
        if cell_choice.why_not(name, w, ACT) is None:
            found.append(ours(name))
            # With a cell that rounds to 16 bits it does not come back, and solve raises.
            if problem.dtype == torch.float32:
                found.append(with_floats(name))
    return found


# ---- what is called, and whether it is right --------------------------------------------------


def call_of(part: str, solve: Solve, problem: Problem) -> Call:
    """A call that solves, and elsewhere differentiates; its results are those to compare."""
    parameters = list(problem.cell.parameters())

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [solve(problem)]

    def train() -> list[Tensor]:
        z = solve(problem)
        return [z.detach(), *torch.autograd.grad([z], parameters, [torch.ones_like(z)])]

    return forward if part == "forward" else train


def refusal(part: str, way: Way, problem: Problem) -> str | None:
    """Why a provider must not be timed: its results are off those of the composite.

    f rounded to W's dtype, as an eager f is, is a unit off in each of its three operations, in
    every half step, and an exact state three quarters of a step of its grid; a cell that contracts
    halves what came before. Who solves for the limit is compared where the composite is there too.
    """
    steps = TO_THE_LIMIT if way.limit else problem.steps
    few = Problem(problem.cell, problem.x[:GATE_ROWS], steps)
    bits = 20 if problem.dtype == torch.float32 else 16
    bound = 2 * 3 * torch.finfo(problem.dtype).eps + 4 * 2.0**-bits
    try:
        got: list[Tensor] = call_of(part, way.solve, few)()  # type: ignore[assignment]
        want: list[Tensor] = call_of(part, COMPOSITE.solve, few)()  # type: ignore[assignment]
    except Exception as error:  # it is printed, stored, and fails the run
        return timing.reason(error)
    for a, b in zip(got, want, strict=True):
        off = float((a.float() - b.float()).norm() / b.float().norm())
        if not off <= bound:
            return f"results are {off:.2g} off the composite's, {bound:.2g} are explained"
    return None
