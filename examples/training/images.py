"""Image classification as a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .config import ImageData
from .errors import RunError
from .order import seed_of
from .task import Batch, digest

TRAINING_DIGITS = 1437
"""Four fifths of the 1797 images; the rest is held out."""


@dataclass(frozen=True)
class Images:
    """Images, uint8 (count, channels, height, width), and their classes, int64 (count,).

    Attributes:
        shift: maximum shift of a crop, in pixels.
        mirror: whether mirror images have the same class.
    """

    training: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    classes: int
    shift: int
    mirror: bool


class ImageTask:
    """Images, normalized by mean and deviation of the training set, per channel. See ``Task``."""

    unit = "images"
    units = 1

    def __init__(self, images: Images, *, augment: bool) -> None:
        self.images, self.augment = images, augment
        self.size, self.held_out = len(images.training[0]), len(images.held_out[0])
        self.identity = digest([*images.training, *images.held_out])
        values = images.training[0].double()
        self.mean = values.mean((0, 2, 3))[:, None, None].float()
        self.deviation = values.std((0, 2, 3))[:, None, None].float()

    def training(self, indices: Tensor, draws: Tensor) -> Batch:
        """Images, shifted and mirrored if so configured, and their classes."""
        images, classes = (part[indices] for part in self.images.training)
        images = self._scaled(images)
        if self.augment:
            images = crop(images, draws[:, :2], self.images.shift)
            if self.images.mirror:
                images = torch.where(
                    (draws[:, 2] < 0.5)[:, None, None, None], images.flip(3), images
                )
        return images, classes

    def evaluation(self, indices: Tensor) -> Batch:
        """Held-out images without augmentation, and their classes."""
        images, classes = (part[indices] for part in self.images.held_out)
        return self._scaled(images), classes

    def figures(self, loss: float, accuracy: float) -> dict[str, float]:
        """The share of images that are classified correctly."""
        return {"accuracy": accuracy}

    def _scaled(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.deviation


def crop(images: Tensor, draws: Tensor, shift: int) -> Tensor:
    """Shift each image by up to `shift` pixels in both directions, and fill with zeros.

    Args:
        images: (count, channels, height, width).
        draws: (count, 2), in [0, 1): the position along height and width.
        shift: pixels.
    """
    count, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (shift,) * 4)
    top, left = (draws * (2 * shift + 1)).long().unbind(1)
    rows = top[:, None, None, None] + torch.arange(height)[:, None]
    columns = left[:, None, None, None] + torch.arange(width)
    sample = torch.arange(count)[:, None, None, None]
    return padded[sample, torch.arange(channels)[:, None, None], rows, columns]


def load_images(data: ImageData) -> Images:
    """The images that the configuration names.

    Raises:
        RunError: they are not available.
    """
    if data.source == "digits":
        return digits()
    from .hub import cifar10

    return cifar10()


def digits() -> Images:
    """The 1797 handwritten digits of scikit-learn, 8 x 8 pixels; one in five is held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RunError(
            "data: the digits come with scikit-learn, which is not installed: pip install "
            "'.[examples]' in the clone"
        ) from error
    found: Any = load_digits()
    images = torch.tensor(found.images).to(torch.uint8)[:, None]  # 0 to 16
    classes = torch.tensor(found.target).long()
    generator = torch.Generator().manual_seed(seed_of("digits"))
    order = torch.randperm(len(images), generator=generator)
    training, held_out = order.split([TRAINING_DIGITS, len(order) - TRAINING_DIGITS])
    parts = [(images[which], classes[which]) for which in (training, held_out)]
    return Images(parts[0], parts[1], classes=10, shift=1, mirror=False)
