"""How many steps the solver takes: as configured, or drawn anew for every update."""

from __future__ import annotations

import random

from torch import nn

from torch_revdeq import RevDEQ

from .order import seed_of


class Depth:
    """Draws the steps of a model's solves in training, and leaves them alone in evaluation.

    Args:
        model: its ``RevDEQ`` layers get their max_steps from here.
        bounds: the least and the most steps; None: as the layers have it.
        seed: of the run.
    """

    def __init__(self, model: nn.Module, bounds: tuple[int, int] | None, seed: int) -> None:
        self.layers = [module for module in model.modules() if isinstance(module, RevDEQ)]
        self.bounds, self.seed = bounds, seed
        self.drawn: int | None = None
        for layer in self.layers if bounds else ():
            layer.max_steps = self._for(layer.max_steps)

    def draw(self, position: int) -> None:
        """Steps for the update at this position, the same in all processes."""
        if self.bounds:
            self.drawn = random.Random(seed_of(self.seed, "depth", position)).randint(*self.bounds)

    def rest(self) -> None:
        """The steps as configured."""
        self.drawn = None

    def _for(self, configured: int) -> object:
        return lambda: configured if self.drawn is None else self.drawn
