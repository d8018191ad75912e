"""LoRA on the cell of an equilibrium model: `python examples/trainers/peft_cell.py`.

A model learns one function; then peft adapts its cell to another one. Only the adapters are trained
and stored, and finally merged into the weights. Needs peft.

What to watch:

- Adapt the model that contains the layer, and name the cell's linear maps in `target_modules`.
- An adapter is part of f: it acts in every step, and its gradient is summed over all of them. A
  small rank is often enough; with a large learning rate the solve may stop converging (see
  `stats.result`).
- `lora_dropout` draws a mask in every evaluation. With a tol use `RevDEQ(..., rng="shared")`.
- Call `backward()` before `merge_adapter`, `set_adapter` or leaving `disable_adapter`: f must be
  the same as in the forward pass, or `backward()` raises.
- Merging rounds W + BA once: outputs agree up to the precision of the weights, not bit for bit.
- `LinearCell` holds its matrices as parameters: `LoraConfig(target_modules=[],
  target_parameters=["equilibrium.f.W"])`.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn

from torch_revdeq import RevDEQ

try:
    from peft import LoraConfig, PeftModel, get_peft_model
except ModuleNotFoundError as error:
    raise SystemExit(f"peft_cell: {error}; pip install '.[trainers]' in the clone") from None


class Cell(nn.Module):
    """f(z, x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_z, self.of_x = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The next state."""
        return torch.tanh(self.norm(self.of_z(z) + self.of_x(x)))


class Model(nn.Module):
    """Eight numbers to an equilibrium, to one."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, width), nn.Linear(width, 1)
        self.equilibrium = RevDEQ(Cell(width), beta=0.8, max_steps=24, tol=1e-3, rng="shared")

    def forward(self, x: Tensor) -> Tensor:
        """One number for each row."""
        return self.head(self.equilibrium(self.stem(x)))


def train(model: nn.Module, x: Tensor, target: Tensor, updates: int) -> float:
    """The loss after so many updates of what can be trained."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(updates):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def main() -> None:
    """Train, adapt, store, merge."""
    torch.set_num_threads(1)  # tensors this small gain nothing from a second
    torch.manual_seed(0)
    x = torch.randn(128, 8)
    sines, others = x.sin().sum(1, keepdim=True), x.sin().roll(1, 1)[:, :4].sum(1, keepdim=True)
    model = Model()
    print(f"all weights: loss {train(model, x, sines, 60):.4f}")
    base = {name: value.clone() for name, value in model.state_dict().items()}
    config = LoraConfig(r=4, target_modules=["of_z", "of_x"], lora_dropout=0.05)
    adapted: Any = get_peft_model(model, config)
    print(f"adapters: loss {train(adapted, x, others, 60):.4f}, {adapted.equilibrium.stats}")
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    adapted.eval()
    expected = adapted(x)
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder)  # the adapters alone
        fresh = Model()
        fresh.load_state_dict(base)
        again: Any = PeftModel.from_pretrained(fresh, folder).eval()
    assert torch.equal(again(x), expected)
    merged = again.merge_and_unload()
    difference = (merged(x) - expected).abs().max().item()
    print(f"{trained} numbers trained, merged within {difference:.1e}")


if __name__ == "__main__":
    main()
