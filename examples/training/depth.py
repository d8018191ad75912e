"""The number of solver steps: as configured, or drawn for every update."""

from __future__ import annotations

import random

from torch import nn

from torch_revdeq import RevDEQ

from .order import seed_of


class Depth:
    """Draws the solver steps for each training update; evaluations use the configured steps.

    Args:
        model: this class sets max_steps of its ``RevDEQ`` layers.
        bounds: minimum and maximum steps; None: no change.
        seed: of the run.
    """

    def __init__(self, model: nn.Module, bounds: tuple[int, int] | None, seed: int) -> None:
        self.layers = [module for module in model.modules() if isinstance(module, RevDEQ)]
        self.bounds, self.seed = bounds, seed
        self.drawn: int | None = None
        for layer in self.layers if bounds else ():
            layer.max_steps = self._for(layer.max_steps)

    def draw(self, position: int) -> None:
        """Draw the steps for the update at this position; all processes draw the same."""
        if self.bounds:
            self.drawn = random.Random(seed_of(self.seed, "depth", position)).randint(*self.bounds)

    def rest(self) -> None:
        """Use the configured steps."""
        self.drawn = None

    def _for(self, configured: int) -> object:
        return lambda: configured if self.drawn is None else self.drawn
