"""An equilibrium classifier under Lightning: `python examples/trainers/lightning_module.py`.

Trains on scikit-learn's digits in bfloat16, stops after two epochs, and resumes.
Needs lightning and scikit-learn.

What to watch:

- Log `stats.as_dict()` in `on_after_backward`: before the backward pass there is no
  reconstruction error, and `self.log` does not take None.
- With "bf16-mixed" the residual stops falling near 2e-3: choose a larger tol. Under autocast, a
  `LinearCell` runs in the solver; with "32-true" or "bf16-true", and no tol, one op takes all
  steps.
- A resumed run sees the same batches as an uninterrupted one only if their order depends only on
  the epoch, as with a `DistributedSampler`. With `shuffle=True` it does not: Lightning does not
  restore the random state, for any model.
- Compile the cell, `RevDEQ(..., compile=True)`, not the LightningModule: the compiler cannot
  trace `self.log`.
- With several devices and a tol, each device takes its own number of steps, and gradients are
  right. If f itself communicates, pass `process_group`.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from torch_revdeq import LinearCell, RevDEQ

try:
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint
    from sklearn.datasets import load_digits
except ModuleNotFoundError as error:
    raise SystemExit(f"lightning_module: {error}; pip install '.[trainers]' in the clone") from None

Batch = tuple[Tensor, Tensor]


class Classifier(L.LightningModule):
    """Pixels to a fixed point, to logits of ten classes."""

    def __init__(self, width: int = 64, max_steps: int = 24, tol: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.equilibrium = RevDEQ(LinearCell(64, width), max_steps=max_steps, tol=tol)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.equilibrium(images))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The loss."""
        images, classes = batch
        loss = F.cross_entropy(self(images), classes)
        self.log("loss", loss)
        return loss

    def on_after_backward(self) -> None:
        """Log the statistics of the solve, including the reconstruction error."""
        stats: Any = self.equilibrium.stats
        self.log_dict(stats.as_dict("solver/"))

    def validation_step(self, batch: Batch, index: int) -> None:
        """Accuracy."""
        images, classes = batch
        self.log("accuracy", (self(images).argmax(1) == classes).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), 3e-3)


def loaders() -> tuple[DataLoader, DataLoader]:
    """Training batches, in an order that depends only on the epoch, and held-out batches."""
    digits: Any = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    classes = torch.tensor(digits.target)
    training = TensorDataset(images[:1437], classes[:1437])
    held_out = TensorDataset(images[1437:], classes[1437:])
    order = DistributedSampler(training, num_replicas=1, rank=0)
    return DataLoader(training, 64, sampler=order), DataLoader(held_out, 360)


def fit(folder: str, epochs: int, *, resume: bool = False, **changes: Any) -> L.Trainer:
    """Train a new model for `epochs` epochs, or continue with the last one in the folder."""
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        gradient_clip_val=1.0,
        callbacks=[ModelCheckpoint(folder, save_last=True)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"precision": "bf16-mixed", **changes},
    )
    trainer.fit(Classifier(), *loaders(), ckpt_path=f"{folder}/last.ckpt" if resume else None)
    return trainer


def main() -> None:
    """Train, resume, test."""
    torch.set_num_threads(1)  # tensors this small gain nothing from a second
    with tempfile.TemporaryDirectory() as folder:
        fit(folder, 2)
        metrics = fit(folder, 8, resume=True).callback_metrics
        print(*(f"{name} {float(value):.4g}" for name, value in metrics.items()), sep=", ")
        model = Classifier.load_from_checkpoint(f"{folder}/last.ckpt", max_steps=60, tol=1e-4)
    images, _ = next(iter(loaders()[1]))
    model.eval()(images)  # outside Lightning's autocast
    print(f"in float32: {model.equilibrium.stats}")


if __name__ == "__main__":
    main()
