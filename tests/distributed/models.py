"""Cases of ``test_distributed`` with the models of ``torch_revdeq.models``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.model import case, gradient_error, shard, world
from torch_revdeq.models import LanguageConfig, LanguageModel, VisionConfig, VisionModel


def language(block: str = "modern", adjoint: str = "auto") -> LanguageModel:
    """The model, with the same weights in every call."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 11, "width": 16, "heads": 2, "context": 12}
    return LanguageModel(LanguageConfig(**sizes, block=block, steps=3, adjoint=adjoint))


def vision(adjoint: str = "auto") -> VisionModel:
    """Without batch normalization, whose averages differ between ranks."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"in_channels": 1, "classes": 3, "channels": (8,), "group_size": 4}
    return VisionModel(VisionConfig.single_scale(**sizes, adjoint=adjoint))


def texts() -> Tensor:
    """All data of the language models."""
    return torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(1))


def images() -> Tensor:
    """All data of the image model."""
    return torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def of_texts(model: nn.Module, tokens: Tensor) -> None:
    """Gradients of the mean loss of the next tokens."""
    F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()


def of_images(model: nn.Module, x: Tensor) -> None:
    """Gradients of a mean over images."""
    model(x).square().mean().backward()


@case("ddp, language model", "modern")
@case("ddp, the paper's language model", "paper")
def replicated(block: str) -> float:
    """Every parameter is used in every step, so that DDP waits for none."""
    model, expected = DistributedDataParallel(language(block)), language(block, "backprop")
    of_texts(expected, texts())
    of_texts(model, shard(texts()))
    return gradient_error(model, expected)


@case("ddp, image model")
def replicated_images() -> float:
    """The single-scale model."""
    model, expected = DistributedDataParallel(vision()), vision("backprop")
    of_images(expected, images())
    of_images(model, shard(images()))
    return gradient_error(model, expected)


@case("fsdp, language model", "model")
@case("fsdp, language model, layer by itself", "layer")
@case("fsdp, language model, cell by itself", "cell")
def sharded(part: str) -> float:
    """If the cell is sharded by itself, the adjoint is hooks without asking for it."""
    model, expected = language(), language(adjoint="backprop")
    mesh = init_device_mesh("cpu", (world(),))
    parts = {"model": [], "layer": [model.equilibrium], "cell": [model.equilibrium.f]}[part]
    for module in (*parts, model):
        fully_shard(module, mesh=mesh)
    of_texts(expected, texts())
    of_texts(model, shard(texts()))
    assert model.stats is not None
    assert model.stats.adjoint == ("hooks" if part == "cell" else "reversible")
    return gradient_error(model, expected)


@case("fsdp, built on the meta device")
def from_meta() -> float:
    """Sharded before memory is allocated, then filled from a state dict."""
    with torch.device("meta"):
        model = LanguageModel(language().config)
    expected = language(adjoint="backprop")
    mesh = init_device_mesh("cpu", (world(),))
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    model.reset_parameters()
    with torch.no_grad():
        for p, want in zip(model.parameters(), expected.parameters(), strict=True):
            assert isinstance(p, DTensor)
            p.copy_(distribute_tensor(want.detach(), mesh, p.placements))
    of_texts(expected, texts())
    of_texts(model, shard(texts()))
    return gradient_error(model, expected)


@case("fsdp, a language model generates")
def generated() -> float:
    """The fraction of tokens that differ from a single process; greedy and with a temperature."""
    model, expected = language(), language()
    for one in (model, expected):
        one.set_solver(tol=1e-4, max_steps=40)
    fully_shard(model, mesh=init_device_mesh("cpu", (world(),)))
    register_fsdp_forward_method(model, "generate")
    want = expected.generate(texts(), 5, temperature=0)
    return (model.generate(texts(), 5, temperature=0) != want).float().mean().item()
