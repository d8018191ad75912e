"""``VisionModel``: image classification with one equilibrium, or one in each of several stages."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layer import RevDEQ
from ..options.table import one_of
from .base import EquilibriumModel
from .config import ModelConfig, number, whole

FORMS = ("single_scale", "multi_stage")


@dataclass(frozen=True, kw_only=True)
class VisionConfig(ModelConfig):
    """An image classifier; ``single_scale()`` and ``multi_stage()`` are those of the paper.

    Attributes:
        form: "single_scale": a convolution and a GroupNorm, one equilibrium, 4 x 4 average pooling,
            a linear map. "multi_stage": a convolution, a BatchNorm and a ReLU; every stage returns
            x + z* with its equilibrium z*; the resolution is halved between stages; then global
            average pooling and a linear map.
        in_channels: channels of the images.
        classes: number of classes.
        channels: channels of each stage; multiples of group_size.
        widths: for each stage, the factor of channels in the cell's first convolution.
        steps: maximum solver steps of each stage.
        group_size: channels per normalization group.
        batch_norm_momentum: of the running averages, in multi_stage. The authors' 0.01 needs some
            hundreds of training steps to converge; PyTorch's own default is 0.1.
        beta: as in ``solve``, and so are tol, state and adjoint; see ``ModelConfig``.

    Raises:
        ValueError: names the invalid field.
    """

    form: str = "single_scale"
    in_channels: int = 3
    classes: int = 10
    channels: tuple[int, ...] = (32,)
    widths: tuple[int, ...] = (1,)
    steps: tuple[int, ...] = (2,)
    group_size: int = 16
    batch_norm_momentum: float = 0.01
    beta: float = 0.8
    tol: float | None = 1e-6

    def __post_init__(self) -> None:
        """Check the fields, before a model is built."""
        super().__post_init__()
        one_of("form", self.form, FORMS)
        for name in ("in_channels", "classes", "group_size"):
            whole(name, getattr(self, name))
        for name in ("channels", "widths", "steps"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not values:
                raise ValueError(f"{name}: expected a tuple, a number per stage, got {values!r}")
            for value in values:
                whole(name, value)
            if len(values) != len(self.channels):
                raise ValueError(
                    f"{name}: expected one for each of {len(self.channels)} stages, as in "
                    f"channels, got {values}"
                )
        if self.form == "single_scale" and len(self.channels) != 1:
            raise ValueError(
                f"channels: expected one number for form='single_scale', got {self.channels}; "
                "choose 'multi_stage'"
            )
        for count in self.channels:
            if count % self.group_size:
                raise ValueError(
                    f"channels: expected multiples of group_size={self.group_size}, got {count}"
                )
        number("batch_norm_momentum", self.batch_norm_momentum, 0, 1)

    @classmethod
    def single_scale(cls, **changes: Any) -> VisionConfig:
        """The paper's single-scale model for CIFAR-10; `changes` override fields."""
        return cls(**changes)

    @classmethod
    def multi_stage(cls, **changes: Any) -> VisionConfig:
        """The paper's multi-stage model for CIFAR-10: 10.3 M parameters.

        `changes` override fields. Source: arXiv 2509.12917 and its authors' code.
        """
        values: dict[str, Any] = {
            "form": "multi_stage",
            "channels": (128, 256, 256, 128),
            "widths": (1, 3, 3, 1),
            "steps": (4, 4, 4, 4),
        }
        return cls(**{**values, **changes})


class ResidualCell(nn.Module):
    """f(z, x) = GN(relu(z + GN(x + conv2(relu(GN(conv1 z)))))), on (batch, channels, h, w).

    3 x 3 convolutions without biases. The last normalization keeps the state in range.
    Source: arXiv 2509.12917, the image experiments, and its authors' code.
    """

    def __init__(self, channels: int, width: int, group_size: int) -> None:
        super().__init__()
        inner, groups = width * channels, channels // group_size
        self.conv1 = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(inner, channels, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(width * groups, inner)
        self.norm2, self.norm3 = (nn.GroupNorm(groups, channels) for _ in range(2))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The next state."""
        h = self.conv2(F.relu(self.norm1(self.conv1(z))))
        return self.norm3(F.relu(z + self.norm2(x + h)))


class Downsample(nn.Module):
    """Halves the resolution: a pre-activation residual block with BatchNorm.

    (batch, channels, h, w) to (batch, out, ceil(h / 2), ceil(w / 2)).
    """

    def __init__(self, channels: int, out: int, momentum: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels, momentum=momentum)
        self.conv1 = nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out, momentum=momentum)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(channels, out, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The residual and the shortcut."""
        h = self.conv1(F.relu(self.norm1(x)))
        return self.conv2(F.relu(self.norm2(h))) + self.shortcut(x)


class VisionModel(EquilibriumModel):
    """Logits of the classes of images.

    Args:
        config: see ``VisionConfig``.
        options: options of ``solve``, which override those of the config in all stages:
            ``max_steps=draw`` for a random depth in every solve, ``store_last=4``, and so on.

    Attributes:
        stages: the ``RevDEQ`` layers, one per stage.
        stats: of the last stage's last solve; for all: ``[stage.stats for stage in model.stages]``.

    Parameters are initialized with PyTorch's defaults, which match the authors' framework.
    BatchNorm is outside the solves, so its running averages count every image once.
    """

    def __init__(self, config: VisionConfig, **options: Any) -> None:
        super().__init__()
        self.config = config
        channels, momentum = config.channels, config.batch_norm_momentum
        many = config.form == "multi_stage"
        first = nn.Conv2d(config.in_channels, channels[0], 3, padding=1, bias=not many)
        if many:
            norm = nn.BatchNorm2d(channels[0], momentum=momentum)
            self.encoder = nn.Sequential(first, norm, nn.ReLU())
        else:
            norm = nn.GroupNorm(channels[0] // config.group_size, channels[0])
            self.encoder = nn.Sequential(first, norm)
        self.stages = nn.ModuleList(
            RevDEQ(
                ResidualCell(count, width, config.group_size),
                **{**config.solver_options(), "max_steps": steps, **options},
            )
            for count, width, steps in zip(channels, config.widths, config.steps, strict=True)
        )
        pairs = pairwise(channels)
        self.downsamplers = nn.ModuleList(Downsample(*pair, momentum) for pair in pairs)
        pixels = 1 if many else 4
        self.pool = nn.AdaptiveAvgPool2d(pixels)
        self.head = nn.Linear(channels[-1] * pixels**2, config.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits.

        Args:
            images: (batch, in_channels, h, w), in the parameters' dtype, usually with every channel
                normalized to mean 0 and variance 1.

        Returns:
            (batch, classes), in the parameters' dtype, or autocast's.

        Raises:
            ValueError: the images are not as described.
            RangeError, ReconstructionError: see ``solve``; the latter from backward().
        """
        if images.dim() != 4 or images.shape[1] != self.config.in_channels:
            raise ValueError(
                f"images: expected the shape (batch, {self.config.in_channels}, h, w), got "
                f"{tuple(images.shape)}; config.in_channels is the number of channels"
            )
        x = self.encoder(images)
        skip = self.config.form == "multi_stage"
        for before, stage in zip([None, *self.downsamplers], self.stages, strict=True):
            x = x if before is None else before(x)
            # The state keeps the parameters' precision where autocast has computed x in less.
            x = x.to(self.head.weight.dtype)
            # A view: the solve's gradient of x is added to that of the skip connection as a single
            # summand, in the same order for every adjoint, so that gradients are bitwise equal.
            x = x + stage(x.view_as(x)) if skip else stage(x)
        return self.head(torch.flatten(self.pool(x), 1))
