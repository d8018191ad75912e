"""Train an equilibrium image classifier: `python examples/train_image.py`.

The default preset, digits, trains on scikit-learn's handwritten digits, a minute on a CPU. The
presets paper and paper-single are the CIFAR-10 experiments of arXiv 2509.12917. `--help` lists the
options. `torchrun --nproc-per-node N examples/train_image.py --parallel ddp` (or fsdp) trains with
N processes. `--resume` continues an interrupted run.
"""

from __future__ import annotations

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from torch_revdeq.models import VisionModel

try:
    from training.command import parse, script
    from training.errors import RunError
    from training.images import ImageTask, load_images
    from training.loop import Trainer
    from training.order import seed_of
    from training.parallel import placed
    from training.presets import IMAGES
except ModuleNotFoundError as error:
    raise SystemExit(f"train_image: {error}; pip install '.[examples]' in the clone") from None


def main() -> None:
    """Train and test."""
    command = parse(IMAGES, __doc__ or "")
    run = command.run
    with placed(run.training) as place:
        images = load_images(run.data)
        channels = images.training[0].shape[1]
        if (run.model.classes, run.model.in_channels) != (images.classes, channels):
            raise RunError(
                f"classes, in_channels: expected {images.classes} and {channels} for "
                f"{run.data.source}, got {run.model.classes} and {run.model.in_channels}"
            )
        task = ImageTask(images, augment=run.data.augment)
        torch.manual_seed(seed_of(run.training.seed, "weights"))
        model = VisionModel(run.model)
        result = Trainer(run, model, task, place, command.out, command.resume).train()
        if place.first:
            print(f"held-out accuracy: {result['accuracy']:.2%}")


if __name__ == "__main__":
    script("train_image", record(main))
