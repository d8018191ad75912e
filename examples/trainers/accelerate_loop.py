"""A custom loop with accelerate: `python examples/trainers/accelerate_loop.py FOLDER`.

Trains an equilibrium classifier on scikit-learn's digits, with gradient accumulation, bfloat16 and
clipping. FOLDER holds a checkpoint; run the same command again to continue training. For several
processes, use `torchrun --nproc-per-node 2 ...`. Needs accelerate and scikit-learn.

What to watch:

- Call `prepare` on the whole model. accelerate wraps it in DistributedDataParallel, and f itself
  must not be wrapped.
- After `prepare` the layer is `accelerator.unwrap_model(model).equilibrium`. Its stats are those of
  the current process.
- Autocast ends with the forward pass; the backward pass evaluates f under the same autocast.
- In bfloat16 the residual stops falling near 2e-3. With a tol below that, every solve takes
  max_steps.
- You can accumulate any number of solves between two calls of `optimizer.step()`. Change weights
  only after `backward`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from torch_revdeq import RevDEQ

try:
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from sklearn.datasets import load_digits
except ModuleNotFoundError as error:
    raise SystemExit(f"accelerate_loop: {error}; pip install '.[trainers]' in the clone") from None


class Cell(nn.Module):
    """f(z, x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_z, self.of_x = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The next state."""
        return torch.tanh(self.norm(self.of_z(z) + self.of_x(x)))


class Classifier(nn.Module):
    """Pixels to a fixed point, to logits of ten classes."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.equilibrium = RevDEQ(Cell(width), beta=0.8, max_steps=24, tol=1e-2)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.equilibrium(self.stem(images)))


def main(folder: str, epochs: int = 4) -> dict[str, Tensor]:
    """Train from the folder's checkpoint, save, and return the weights."""
    torch.set_num_threads(1)  # tensors this small gain nothing from a second
    set_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    digits: Any = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    classes = torch.tensor(digits.target)
    batches = DataLoader(TensorDataset(images[:1437], classes[:1437]), 32, shuffle=True)
    model: Any = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    layer = accelerator.unwrap_model(model).equilibrium
    if Path(folder).exists():
        accelerator.load_state(folder)  # weights, optimizer, random numbers

    for epoch in range(epochs):
        for x, y in batches:
            with accelerator.accumulate(model):
                loss = F.cross_entropy(model(x), y)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        accelerator.print(f"epoch {epoch + 1} loss {loss.item():.3f} {layer.stats.as_dict()}")
    accelerator.save_state(folder)
    with torch.no_grad():
        found = model(images[1437:].to(accelerator.device)).argmax(1).cpu()
    accelerator.print(f"held-out accuracy {(found == classes[1437:]).float().mean():.1%}")
    accelerator.end_training()
    return accelerator.unwrap_model(model).state_dict()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "accelerate-run")
