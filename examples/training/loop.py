"""The training loop: updates, evaluations, logging and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from . import checkpoint as checkpoints
from .checkpoint import OPTIMIZER, WEIGHTS, Checkpoint, Facts, Tensors
from .config import AnyRun, to_dict
from .depth import Depth
from .errors import RunError
from .evaluation import evaluate
from .interruption import InterruptedRunError, Interruption
from .logs import Bar, Log, Record, Stopwatch, peak_memory, solver_figures
from .order import Order, seed_of
from .parallel import Place, exchanging, share
from .schedule import schedule_for
from .state import gather, restore
from .task import Task


class Trainer:
    """A model in training.

    Args:
        run: its configuration.
        model: returns logits (..., classes); every process must build the same.
        task: the data and its figures.
        place: this process.
        folder: for checkpoints and log.
        resume: the checkpoint to continue from.

    Raises:
        RunError: the options are inconsistent; raised before any training.
    """

    def __init__(
        self,
        run: AnyRun,
        model: nn.Module,
        task: Task,
        place: Place,
        folder: Path,
        resume: Checkpoint | None = None,
    ) -> None:
        self.run, self.task, self.place, self.folder = run, task, place, folder
        self.training = training = run.training
        self.micro, self.rounds = _parts(training.batch, training.micro_batch, place.world)
        checkpoints.check_space(folder, checkpoints.space_needed(model))
        self.order = Order(task.size, training.seed)
        self.depth = Depth(model, training.random_depth, training.seed)
        self.bare = model.train()
        if training.compile:
            self.bare.compile()
        self.model = share(self.bare, training, place)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=training.lr,
            betas=training.betas,
            weight_decay=training.weight_decay,
        )
        self.schedule = schedule_for(self.optimizer, training)
        self.dtype = torch.bfloat16 if training.precision == "bfloat16" else None
        self.updates = self.samples = 0
        if resume:
            self.restore(resume)

    def train(self, on_update: Callable[[int], None] | None = None) -> Record:
        """Run all remaining updates, and return the final evaluation.

        `on_update` is called with the number of each update, after it.

        Raises:
            InterruptedRunError: on Ctrl-C or SIGTERM, after the current update and a checkpoint. In
                a run of several processes, the signals have their usual effect.
        """
        interruption = Interruption()
        with interruption.watched(wanted=self.place.world == 1):
            return self._train(interruption, on_update)

    def _train(self, interruption: Interruption, on_update: Callable[[int], None] | None) -> Record:
        every = self.training
        bar = Bar(self.updates, every.updates, self.task.unit, shown=self.place.first)
        watch = Stopwatch(self.samples * self.task.units)
        record, result = {}, {}
        log = Log(self.folder, self.updates) if self.place.first else None
        try:
            while self.updates < every.updates:
                loss, norm = self.update()
                last = self.updates == every.updates
                log_now, evaluate_now, save_now = (
                    last or self.updates % count == 0
                    for count in (every.log_every, every.evaluate_every, every.checkpoint_every)
                )
                cut = interruption.signal is not None and not last
                save_now = save_now or cut
                if log_now or save_now:
                    _check_finite(self.updates, loss=loss, gradient_norm=norm)
                if log_now:
                    rate = watch.rate(self.samples * self.task.units)
                    record = self.record(loss, norm, rate)
                with watch.paused():
                    if evaluate_now:
                        result = self.evaluate(None if last else every.evaluation_samples)
                        bar.say(result)
                    if save_now:
                        self.save()
                if log:
                    log.write(*([record] if log_now else []), *([result] if evaluate_now else []))
                bar.update(self.updates, record, result)
                if on_update:
                    on_update(self.updates)
                if cut:
                    raise InterruptedRunError(interruption.signal, self.updates, self.folder)
        finally:
            bar.close()
            if log:
                log.close()
        return result or self.evaluate()

    def update(self) -> tuple[Tensor, Tensor]:
        """One optimizer step. Returns the mean loss of all processes, and the gradient's norm."""
        self.depth.draw(self.samples)
        self.optimizer.zero_grad()
        losses = []
        for i in range(self.rounds):
            # Samples are assigned round by round, and within a round process by process.
            first = self.samples + (i * self.place.world + self.place.rank) * self.micro
            with exchanging(self.model, now=i == self.rounds - 1):
                loss = self._loss(first)
                (loss / self.rounds).backward()
            losses.append(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.training.clip or torch.inf
        )
        self.optimizer.step()
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        loss = self.place.mean(torch.stack(losses).mean())
        self.schedule.step(loss)
        self.updates, self.samples = self.updates + 1, self.samples + self.training.batch
        return loss, norm

    def evaluate(self, samples: int | None = None) -> Record:
        """Evaluate on held-out samples, with the configured solver steps."""
        self.depth.rest()
        options: Any = {"batch": self.micro, "samples": samples, "dtype": self.dtype}
        found = evaluate(self.model, self.task, self.place, **options)
        return {"kind": "evaluation", "update": self.updates, **found}

    def save(self) -> None:
        """Write a checkpoint. All processes must call this; the first one writes."""
        weights, optimizer = gather(self.model, self.optimizer)
        if self.place.first:
            facts = Facts(
                config=to_dict(self.run),
                data=self.task.identity,
                update=self.updates,
                samples=self.samples,
                schedule=self.schedule.state_dict(),
                rates=[group["lr"] for group in self.optimizer.param_groups],
            )
            files = {WEIGHTS: weights, OPTIMIZER: optimizer, **self.more()}
            checkpoints.write(self.folder, facts, files, self.training.keep)
        self.place.wait()

    def more(self) -> dict[str, Tensors]:
        """Additional files of tensors in a checkpoint."""
        return {}

    def _loss(self, first: int) -> Tensor:
        """The mean cross entropy of the samples from a position on.

        Random numbers that the model draws, as in dropout, depend only on seed and position: not on
        earlier computations, nor on the process.
        """
        indices, draws = self.order.take(first, self.micro)
        inputs, targets = self.task.training(indices, draws)
        inputs, targets = inputs.to(self.place.device), targets.to(self.place.device)
        torch.manual_seed(seed_of(self.training.seed, "model", first))
        with torch.autocast(self.place.device.type, self.dtype, enabled=self.dtype is not None):
            logits = self.model(inputs)
        return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        facts = checkpoint.facts
        if facts.data != self.task.identity:
            raise RunError(
                f"{checkpoint.path}: was trained on other data, so its position in the data does "
                "not apply; provide that data, or start a new run in another folder"
            )
        restore(self.model, self.optimizer, checkpoint)
        self.schedule.load_state_dict(facts.schedule)
        self.updates, self.samples = facts.update, facts.samples

    def record(self, loss: Tensor, norm: Tensor, rate: float) -> Record:
        """A record for the log. Synchronizes with the device."""
        return {
            "kind": "training",
            "update": self.updates,
            "loss": loss.item(),
            "lr": self.optimizer.param_groups[0]["lr"],
            "gradient_norm": norm.item(),
            "per_second": rate,
            "peak_memory": peak_memory(self.place.device),
            **solver_figures(self.depth.layers),
        }


def _check_finite(update: int, **values: Tensor) -> None:
    """RunError for a loss or a norm that is not finite. Synchronizes with the device."""
    for name, value in values.items():
        if not torch.isfinite(value):
            raise RunError(
                f"{name}: {value.item()} in update {update}: the run has diverged; start a new run "
                "in another folder with a lower lr or with clip"
            )


def _parts(batch: int, micro: int | None, world: int) -> tuple[int, int]:
    """Samples per forward pass, and forward passes per update in a process."""
    if micro is None and batch % world == 0:
        micro = batch // world
    if not micro or micro < 1 or batch % (micro * world):
        raise RunError(
            f"batch: expected a multiple of {micro or 1} samples per forward pass in each of "
            f"{world} processes, got {batch}; change batch or micro_batch"
        )
    return micro, batch // (micro * world)
