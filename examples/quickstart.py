"""Train an equilibrium model on handwritten digits: `python examples/quickstart.py`.

One cell, a convolution with a normalization, is iterated until its relative residual is below 1e-3.
Training reconstructs these steps in the backward pass instead of storing them; the last line
compares the peak memory of both. Needs rich, and scikit-learn for its 1797 images.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from torch_revdeq import RevDEQ

try:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from sklearn.datasets import load_digits
except ModuleNotFoundError as error:
    raise SystemExit(f"quickstart: {error}; pip install '.[examples]' in the clone") from None

CHANNELS, BATCH, TRAINING_IMAGES = 32, 64, 1437


@dataclass
class Options:
    """Command line options."""

    epochs: int = 8
    steps: int = 16  # at most
    state: str = "exact"
    adjoint: str = "reversible"
    seed: int = 0
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


HELP = {
    "epochs": "Passes over the training images.",
    "steps": "Maximum solver steps (two evaluations of the cell each); not training updates.",
    "state": "Solver state: exact, float64, float32, bfloat16 or float16.",
    "adjoint": "Method of computing gradients: reversible, hooks, checkpoint or backprop.",
    "seed": "Seed of the weights and of the order of the images.",
    "device": "Device to train on.",
}


class Cell(nn.Module):
    """f(z, x). The layer returns its fixed point z = f(z, x)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.norm = nn.GroupNorm(4, CHANNELS)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The next state. Every evaluation adds x; the normalization keeps numbers in range."""
        return F.relu(self.norm(x + self.conv(z)))


class Model(nn.Module):
    """Image to features, to their fixed point, to logits of ten classes."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, CHANNELS, 3, padding=1), nn.GroupNorm(4, CHANNELS))
        state = "exact" if options.state == "exact" else getattr(torch, options.state)
        how = {"max_steps": options.steps, "state": state, "adjoint": options.adjoint}
        self.equilibrium = RevDEQ(Cell(), beta=0.8, tol=1e-3, **how)
        self.head = nn.Linear(64 * CHANNELS, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        solution = self.equilibrium.solve(self.stem(images))
        self.stats = solution.stats
        return self.head(solution.z.flatten(1))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live tensors that operations have created."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = WeakIdKeyDictionary()  # by storage; 0 for those that existed before
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note((args, kwargs), new=False)
        result = func(*args, **(kwargs or {}))
        self._note(result, new=True)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return result

    def _note(self, tensors: Any, *, new: bool) -> None:
        for storage in (t.untyped_storage() for t in tree_leaves(tensors) if isinstance(t, Tensor)):
            self.sizes.setdefault(storage, storage.nbytes() if new else 0)


def peak_memory(model: Model, images: Tensor, classes: Tensor) -> int:
    """Peak bytes of one training step, excluding the model and the data."""
    model.zero_grad()
    if images.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        F.cross_entropy(model(images), classes).backward()
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as live:
        F.cross_entropy(model(images), classes).backward()
    return live.peak


@torch.no_grad()
def accuracy(model: Model, images: Tensor, classes: Tensor) -> float:
    """The share of the images that are classified correctly."""
    return (model(images).argmax(1) == classes).float().mean().item()


def main(options: Options) -> None:
    """Train, test, and compare memory."""
    torch.set_num_threads(1)  # a second thread gains little for tensors this small
    torch.manual_seed(options.seed)
    data: Any = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32, device=options.device)[:, None] / 16
    classes = torch.tensor(data.target, device=options.device)
    order = torch.randperm(len(images))
    train, test = order[:TRAINING_IMAGES], order[TRAINING_IMAGES:]
    model = Model(options).to(options.device)
    updates = options.epochs * math.ceil(len(train) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=updates)

    columns = [
        TextColumn("epoch {task.fields[epoch]}  loss {task.fields[loss]:.4f}"),
        TextColumn("accuracy {task.fields[accuracy]:.1%}  steps {task.fields[steps]}"),
    ]
    with Progress(*columns, BarColumn(), TimeElapsedColumn()) as progress:
        bar = progress.add_task("", total=updates, epoch=0, loss=math.nan, accuracy=0, steps=0)
        for epoch in range(1, options.epochs + 1):
            for batch in train[torch.randperm(len(train))].split(BATCH):
                loss = F.cross_entropy(model(images[batch]), classes[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                shown = {"epoch": epoch, "loss": loss.item(), "steps": model.stats.steps}
                progress.update(bar, advance=1, **shown)
            progress.update(bar, accuracy=accuracy(model, images[test], classes[test]))

    stored = Model(replace(options, adjoint="backprop")).to(options.device)
    stored.load_state_dict(model.state_dict())
    batch = images[train[:BATCH]], classes[train[:BATCH]]
    memory, most = (peak_memory(m, *batch) / 2**20 for m in (model, stored))
    stats = model.stats
    print(
        f"test accuracy {accuracy(model, images[test], classes[test]):.1%}, {stats.steps} steps, "
        f"peak memory {memory:.1f} MiB {stats.adjoint} against {most:.1f} MiB backprop "
        f"({most / memory:.1f}x), reconstruction error {stats.reconstruction_error}"
    )


if __name__ == "__main__":
    shown = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shown)
    for option in fields(Options):
        kind, default = type(option.default), option.default
        parser.add_argument(f"--{option.name}", type=kind, default=default, help=HELP[option.name])
    main(Options(**vars(parser.parse_args())))
