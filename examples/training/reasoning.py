"""Deep supervision: repeated passes over puzzles, each with its own loss, until a puzzle halts."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from torch_revdeq.models import RecursiveModel

from .checkpoint import Checkpoint, Tensors, read_tensors
from .config import ReasoningRun
from .errors import RunError
from .logs import Record
from .loop import Trainer
from .order import seed_of
from .parallel import Place
from .slots import Slots
from .state import apart
from .task import Task

AVERAGE, SLOTS = "average.safetensors", "slots.safetensors"
"""Additional files of a checkpoint: the averaged weights, and the current puzzles."""

HALT_WEIGHT = 0.5
"""Weight of the halting loss relative to the cells' loss, as in arXiv 2510.04871."""


class ReasoningTrainer(Trainer):
    """A recursive reasoning model in training.

    An update is one pass over the batch, its backward pass, and an optimizer step. Then new puzzles
    replace those with a halt logit above 0 and those that have taken `passes` passes; the others
    continue from their current state. Evaluations use a moving average of the weights.

    Args:
        run: its configuration.
        model: on the CPU, newly built.
        task: puzzles (count, cells) and their solutions.
        place: this process, which must be the only one.
        folder: for checkpoints and log.
        resume: the checkpoint to continue from.

    Raises:
        RunError: the options are inconsistent; raised before any training.
    """

    def __init__(
        self,
        run: ReasoningRun,
        model: RecursiveModel,
        task: Task,
        place: Place,
        folder: Path,
        resume: Checkpoint | None = None,
    ) -> None:
        for name, only in (("parallel", "none"), ("micro_batch", None)):
            if getattr(run.training, name) != only:
                raise RunError(
                    f"{name}: expected {only}, got {getattr(run.training, name)}: one process "
                    "carries the whole batch of puzzles from update to update"
                )
        super().__init__(run, model, task, place, folder)
        self.reasoning = run.reasoning
        decay = self.reasoning.average
        self.average = AveragedModel(self.bare, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.slots = Slots.empty(model, self.training.batch, place.device)
        self.halted_after: Tensor | None = None
        if resume:
            self.restore(resume)
        else:
            self.refill(torch.ones(self.training.batch, dtype=torch.bool, device=place.device))

    def update(self) -> tuple[Tensor, Tensor]:
        """One pass and one optimizer step. Returns the loss and the gradient's norm."""
        self.depth.draw(self.updates)
        slots, dtype = self.slots, self.dtype
        with torch.autocast(self.place.device.type, dtype, enabled=dtype is not None):
            output = self.model(slots.tokens, slots.carry)
        answers = output.logits.argmax(-1)
        self.right = (answers == slots.answers).all(1)
        loss = F.cross_entropy(output.logits.flatten(0, 1).float(), slots.answers.flatten())
        halting = F.binary_cross_entropy_with_logits(output.halt.float(), self.right.float())
        self.optimizer.zero_grad()
        (loss + HALT_WEIGHT * halting).backward()
        clip = self.training.clip or torch.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.schedule.step(loss.detach())
        self.average.update_parameters(self.bare)
        self.updates += 1
        slots.carry, slots.passes = output.carry, slots.passes + 1
        halted = self._halted(output.halt.detach())
        self.halted_after = slots.passes[halted].float()
        self.refill(halted)
        return loss.detach(), norm

    def _halted(self, halt: Tensor) -> Tensor:
        """Which puzzles halt now, bool (batch,). Some may not yet, to explore longer runs."""
        most, count = self.reasoning.passes, len(halt)
        generator = torch.Generator().manual_seed(seed_of(self.training.seed, "halt", self.updates))
        kept = torch.rand(count, generator=generator) < self.reasoning.explore
        least = torch.randint(1, most + 1, (count,), generator=generator) * kept
        passes = self.slots.passes
        return ((halt > 0) & (passes >= least.to(passes.device))) | (passes >= most)

    def refill(self, which: Tensor) -> None:
        """Fill these slots with new puzzles and the initial carry."""
        count = int(which.sum())
        if not count:
            return
        tokens, answers = self.task.training(*self.order.take(self.samples, count))
        slots = self.slots
        slots.tokens = slots.tokens.masked_scatter(which[:, None], tokens.to(which.device))
        slots.answers = slots.answers.masked_scatter(which[:, None], answers.to(which.device))
        slots.passes = slots.passes.masked_fill(which, 0)
        slots.carry = self.network.restart(slots.carry, which)
        self.samples += count

    @property
    def network(self) -> RecursiveModel:
        """The model with the current weights."""
        return cast("RecursiveModel", self.bare)

    @property
    def averaged(self) -> RecursiveModel:
        """The model with the averaged weights."""
        return cast("RecursiveModel", self.average.module)

    def evaluate(self, samples: int | None = None) -> Record:
        """How many held-out puzzles the averaged weights solve, and in how many passes."""
        self.depth.rest()
        count = min(samples or self.task.held_out, self.task.held_out)
        chosen = torch.arange(count) * self.task.held_out // count
        sums = torch.zeros(3, dtype=torch.float64)
        for indices in chosen.split(self.training.batch):
            tokens, answers = (t.to(self.place.device) for t in self.task.evaluation(indices))
            with torch.autocast(self.place.device.type, self.dtype, enabled=self.dtype is not None):
                found = self.averaged.predict(tokens, self.reasoning.passes, halt=True)
            right = found.tokens == answers
            parts = (right.all(1), right.double().mean(1), found.passes)
            sums += torch.stack([part.double().sum().cpu() for part in parts])
        solved, cells, passes = (sums / count).tolist()
        figures = {"accuracy": solved, "cell_accuracy": cells, "passes": passes}
        return {"kind": "evaluation", "update": self.updates, **figures}

    def record(self, loss: Tensor, norm: Tensor, rate: float) -> Record:
        """The usual record, plus the accuracy of the last pass and the passes until halting."""
        halted = self.halted_after
        passes = None if halted is None or not len(halted) else halted.mean().item()
        accuracy = self.right.double().mean().item()
        return {**super().record(loss, norm, rate), "accuracy": accuracy, "passes": passes}

    def more(self) -> dict[str, Tensors]:
        """The averaged weights, and the puzzles with their carry."""
        weights = self.averaged.state_dict()
        average = {name: value.cpu() for name, value in weights.items()}
        return {AVERAGE: dict(apart(average)), SLOTS: dict(apart(self.slots.tensors()))}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        super().restore(checkpoint)
        self.averaged.load_state_dict(read_tensors(checkpoint.path / AVERAGE))
        self.average.n_averaged.fill_(self.updates)
        self.slots.load(read_tensors(checkpoint.path / SLOTS))
