"""Train an equilibrium language model: `python examples/train_lm.py --preset tiny`.

The preset tiny trains on the sources of Python's standard library, byte by byte, for a few minutes
on a CPU, and compares the result with a trigram model of the same bytes. The preset paper is the
Wikitext-103 experiment of arXiv 2509.12917. `--help` lists the options. `torchrun --nproc-per-node
N examples/train_lm.py --parallel ddp` (or fsdp) trains with N processes. `--resume` continues an
interrupted run.
"""

from __future__ import annotations

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from torch_revdeq.models import LanguageModel

try:
    from training.command import parse, script
    from training.errors import RunError
    from training.loop import Trainer
    from training.order import seed_of
    from training.parallel import placed
    from training.presets import LANGUAGE
    from training.text import TextTask, load_text
    from training.trigram import Trigram
except ModuleNotFoundError as error:
    raise SystemExit(f"train_lm: {error}; pip install '.[examples]' in the clone") from None


def main() -> None:
    """Train, and compare with a trigram model."""
    command = parse(LANGUAGE, __doc__ or "")
    run = command.run
    with placed(run.training) as place:
        text = load_text(run.data)
        if text.vocabulary > run.model.vocab_size:
            raise RunError(
                f"vocab_size: expected at least the {text.vocabulary} tokens of this text, got "
                f"{run.model.vocab_size}"
            )
        task = TextTask(text, run.model.context)
        torch.manual_seed(seed_of(run.training.seed, "weights"))
        model = LanguageModel(run.model)
        result = Trainer(run, model, task, place, command.out, command.resume).train()
        if place.first and text.byte_tokens:
            trigram = Trigram(text.training).bits_per_byte([task.held_out_tokens])
            print(
                f"held-out bits per byte: {result['bits_per_byte']:.3f}, interpolated trigram "
                f"model {trigram:.3f}"
            )


if __name__ == "__main__":
    script("train_lm", record(main))
