"""What each benchmark of the solver measures: on which maps, at which beta, to which depths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bench.core.session import Session, Tier
from bench.solver import methods, models, peers
from bench.solver.bare import BARE
from bench.solver.measure import Point
from bench.solver.methods import Method

TEXT_AND_IMAGES = ("language", "vision")
BOTH = ("mlp", "block")


@dataclass(frozen=True)
class Grid:
    """Every one of these maps at this beta to every one of these depths."""

    models: Sequence[str]
    beta: float
    depths: Sequence[int]


@dataclass(frozen=True)
class Part:
    """One benchmark: its methods, and by tier where they are measured.

    `dear` are parts of the names of methods that a default run leaves out to save time: they
    compile for longer than all others together take, or need a process of their own.
    """

    methods: tuple[Method, ...]
    full: tuple[Grid, ...]
    default: tuple[Grid, ...]
    quick: tuple[Grid, ...]
    dear: tuple[str, ...] = ()


PARTS = {
    "cost": Part(
        methods.COST,
        full=(
            Grid(BOTH, 0.5, (2, 4, 8, 16, 32, 64)),
            Grid(BOTH, 0.8, (2, 8, 32)),
            Grid(TEXT_AND_IMAGES, 0.5, (2, 8, 32)),
        ),
        default=(Grid(("mlp",), 0.5, (2, 8)), Grid(("block", *TEXT_AND_IMAGES), 0.5, (8,))),
        quick=(Grid((*BOTH, *TEXT_AND_IMAGES), 0.5, (2,)),),
    ),
    "options": Part(
        methods.OPTIONS,
        full=(Grid(BOTH, 0.5, (4,)),),
        default=(Grid(("mlp",), 0.5, (2,)),),
        quick=(Grid(("mlp",), 0.5, (2,)),),
        dear=("functional",),
    ),
    "compiled": Part(
        methods.COMPILED,
        full=(Grid((*BOTH, *TEXT_AND_IMAGES, "cell"), 0.5, (8,)),),
        default=(Grid(TEXT_AND_IMAGES[:1], 0.5, (4,)),),
        quick=(Grid(("mlp",), 0.5, (2,)),),
    ),
    "peers": Part(
        peers.PEERS,
        full=(Grid((*BOTH, "cell"), 0.5, (2, 8, 32)),),
        default=(Grid(("block",), 0.5, (8,)),),
        quick=(Grid(("mlp",), 0.5, (2,)),),
        dear=("lerp loop, compiled",),
    ),
    "error": Part(
        methods.ERROR,
        full=tuple(
            Grid(("block",), beta, (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)) for beta in (0.5, 0.8, 0.9)
        ),
        default=tuple(Grid(("block",), beta, (2, 4, 8, 16)) for beta in (0.5, 0.9)),
        quick=(Grid(("block",), 0.8, (2, 8)),),
    ),
    "largest": Part(
        (methods.LOOP, *peers.IN_LARGEST, *methods.COST[3:5]),
        full=(Grid(BOTH, 0.5, (8,)),),
        default=(Grid(("mlp",), 0.5, (8,)),),
        quick=(Grid(("mlp",), 0.5, (2,)),),
        dear=("torchdeq",),
    ),
    "overhead": Part(
        (*methods.OVERHEAD, BARE),
        full=(Grid(("tiny",), 0.5, (2, 8, 32)),),
        default=(Grid(("tiny",), 0.5, (8,)),),
        quick=(Grid(("tiny",), 0.5, (2,)),),
    ),
    "profile": Part(
        methods.COST,
        full=(Grid(BOTH, 0.5, (8,)),),
        default=(Grid(("mlp",), 0.5, (2,)),),
        quick=(Grid(("mlp",), 0.5, (2,)),),
    ),
}


def points(part: str, session: Session, known: Sequence[Method]) -> list[Point]:
    """What to measure, the shallow solves of each case first. `known` are the methods to choose."""
    wanted = wanted_methods(PARTS[part], session, known)
    sizes = models.sizes_of(session.device, session.tier)
    if part == "error":  # it does not depend on the batch; a small one leaves time for depths
        sizes = sizes.with_batch(2)
    if part == "largest" and session.tier == "default" and session.device.type == "cpu":
        sizes = replace(sizes, width=128, rows=256)  # so that the budget takes seconds to fill
    grids = _chosen(PARTS[part], session)
    found = {
        (model, grid.beta, steps): None
        for grid in grids
        for model in grid.models
        for steps in grid.depths
    }
    return [Point(part, model, sizes, beta, steps, wanted) for model, beta, steps in found]


def wanted_methods(part: Part, session: Session, known: Sequence[Method]) -> tuple[Method, ...]:
    """Those that `--providers` names, or all; the loop that times are held to always stays."""
    named = bool(session.chosen.providers)
    dear = () if session.tier == "full" or named else part.dear
    return tuple(
        method
        for method in known
        if method == methods.LOOP
        or (session.wants_provider(method.name) and not any(name in method.name for name in dear))
    )


def _chosen(part: Part, session: Session) -> Iterator[Grid]:
    """The tier's grids, with `--models`, `--betas` and `--depths` instead of their own."""
    chosen = session.chosen
    by_tier: dict[Tier, tuple[Grid, ...]] = {
        "full": part.full,
        "default": part.default,
        "quick": part.quick,
    }
    grids: Sequence[Grid] = by_tier[session.tier]
    for model in chosen.models or dict.fromkeys(m for grid in grids for m in grid.models):
        having = [grid for grid in grids if model in grid.models] or grids
        for beta in chosen.betas or dict.fromkeys(grid.beta for grid in having):
            at_beta = [grid for grid in having if grid.beta == beta] or having[:1]
            for grid in at_beta:
                depths = chosen.depths or grid.depths
                yield replace(grid, models=(model,), beta=beta, depths=depths)
