"""Train a recursive reasoning model on Sudoku: `python examples/train_reasoning.py`.

The model is in the family of TRM and HRM, and is differentiated through all its recursions. The
default preset, 4x4, generates its puzzles and takes minutes on a CPU; 6x6 takes longer. The preset
sudoku-extreme uses the published puzzles and needs a GPU. `--help` lists the options: `--adjoint
backprop` stores all activations, `--backward-steps 1` differentiates only the last solver step.
`--resume` continues an interrupted run.
"""

from __future__ import annotations

import torch

from torch_revdeq.models import RecursiveModel

try:
    from training.command import parse, script
    from training.errors import RunError
    from training.order import seed_of
    from training.parallel import placed
    from training.presets import REASONING
    from training.reasoning import ReasoningTrainer
    from training.sudoku import SudokuTask, load_sudoku
except ModuleNotFoundError as error:
    raise SystemExit(f"train_reasoning: {error}; pip install '.[examples]' in the clone") from None


def main() -> None:
    """Train, and solve held-out puzzles."""
    command = parse(REASONING, __doc__ or "")
    run, size = command.run, command.run.data.size
    if (run.model.vocab_size, run.model.length) != (size + 1, size**2):
        raise RunError(
            f"vocab_size, length: expected {size + 1} and {size**2} for puzzles of {size}x{size} "
            f"cells, got {run.model.vocab_size} and {run.model.length}"
        )
    with placed(run.training) as place:
        task = SudokuTask(load_sudoku(run.data), augment=run.data.augment)
        torch.manual_seed(seed_of(run.training.seed, "weights"))
        model = RecursiveModel(run.model, backward_steps=run.reasoning.backward_steps)
        trainer = ReasoningTrainer(run, model, task, place, command.out, command.resume)
        result = trainer.train()
        print(
            f"held-out puzzles solved: {result['accuracy']:.2%}, in {result['passes']:.2f} passes "
            "on average"
        )


if __name__ == "__main__":
    script("train_reasoning", main)
