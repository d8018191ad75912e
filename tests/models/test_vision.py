"""The image models: shapes, parameters, gradients."""

from __future__ import annotations

import copy
import json
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models import modelling
from tests.models.modelling import assert_same
from tests.tolerances import assert_within, unit_roundoff
from torch_revdeq.models import VisionConfig, VisionModel
from torch_revdeq.models.vision import Downsample, ResidualCell
from torch_revdeq.testing import assert_exact_gradients

BOTH = pytest.mark.parametrize("form", ["single_scale", "multi_stage"])


def tiny(form: str, **changes: Any) -> VisionConfig:
    sizes: dict[str, Any] = {"in_channels": 1, "classes": 3, "group_size": 4}
    if form == "single_scale":
        return VisionConfig.single_scale(**{**sizes, "channels": (8,), **changes})
    stages = {"channels": (4, 8), "widths": (1, 2), "steps": (2, 3)}
    return VisionConfig.multi_stage(**{**sizes, **stages, **changes})


def model_of(config: VisionConfig, **options: Any) -> VisionModel:
    torch.manual_seed(0)
    return VisionModel(config, **options)


def images(batch: int = 4, size: int = 6) -> Tensor:
    return torch.randn(batch, 1, size, size, generator=torch.Generator().manual_seed(1))


def gradients(model: VisionModel, run: Any, x: Tensor) -> dict[str, Tensor]:
    """Of a mean loss."""
    classes = torch.arange(len(x)) % 3
    return modelling.gradients(model, lambda: F.cross_entropy(run(x).float(), classes))


def test_the_papers_models_have_their_parameters() -> None:
    with torch.device("meta"):
        many = VisionModel(VisionConfig.multi_stage(classes=10, in_channels=3))
        single = VisionModel(VisionConfig.single_scale())
    channels, widths = (128, 256, 256, 128), (1, 3, 3, 1)
    count = 27 * 128 + 2 * 128 + 128 * 10 + 10
    for c, w in zip(channels, widths, strict=True):
        count += 2 * 9 * w * c * c + 2 * w * c + 4 * c
    for a, b in pairwise(channels):
        count += 9 * a * b + 9 * b * b + a * b + 2 * a + 2 * b
    assert sum(p.numel() for p in many.parameters()) == count == 10_319_754
    count = 27 * 32 + 32 + 64 + 2 * 9 * 32 * 32 + 6 * 32 + 16 * 32 * 10 + 10
    assert sum(p.numel() for p in single.parameters()) == count == 24_714
    assert [(s.beta, s.options["max_steps"], s.options["tol"]) for s in many.equilibria] == [
        (0.8, 4, 1e-6)
    ] * 4
    assert [(s.beta, s.options["max_steps"]) for s in single.equilibria] == [(0.8, 2)]


@pytest.mark.parametrize("config", [tiny("single_scale"), VisionConfig.multi_stage(tol=None)])
def test_a_config_goes_through_json(config: VisionConfig) -> None:
    assert VisionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "three"}, "form: expected one of 'single_scale', 'multi_stage', got 'three'"),
        ({"channels": (8, 8)}, "widths: expected one for each of 2 stages"),
        ({"channels": 8}, "channels: expected a tuple, a number per stage, got 8"),
        ({"channels": (6,)}, "channels: expected multiples of group_size=4, got 6"),
        ({"widths": (0,)}, "widths: expected an integer of at least 1, got 0"),
        ({"steps": (1, 2)}, "steps: expected one for each of 1 stages"),
        ({"classes": 0}, "classes: expected an integer"),
        ({"beta": 1.0}, "beta: expected a number other than 1"),
        ({"batch_norm_momentum": 0}, "batch_norm_momentum: expected a number"),
    ],
)
def test_a_wrong_field_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    values = {**tiny("single_scale").to_dict(), **changes}
    with pytest.raises(ValueError, match=message):
        VisionConfig.from_dict(values)


def test_stages_and_unknown_keys_are_refused() -> None:
    pairs = {"channels": (8, 8), "widths": (1, 1), "steps": (1, 1)}
    with pytest.raises(ValueError, match="channels: expected one number for form="):
        tiny("single_scale", **pairs)
    with pytest.raises(ValueError, match=r"stem: expected a field of VisionConfig, one of .*form"):
        VisionConfig.from_dict({"stem": 3})
    for wrong in (torch.zeros(2, 1, 6), torch.zeros(2, 3, 6, 6)):
        with pytest.raises(ValueError, match=r"images: expected the shape \(batch, 1, h, w\), got"):
            model_of(tiny("multi_stage"))(wrong)


def test_the_cell_is_its_equation() -> None:
    """Normalisations written out, in float64: to the roundings of some hundred operations."""
    torch.manual_seed(0)
    cell = ResidualCell(8, 2, 4).double()
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter)
    z, x = torch.randn(2, 3, 8, 5, 5, dtype=torch.float64)

    def norm(h: Tensor, like: torch.nn.GroupNorm) -> Tensor:
        groups = h.reshape(len(h), -1, 4 * 25)  # of 4 channels
        scale = (groups.var(-1, unbiased=False, keepdim=True) + 1e-5).rsqrt()
        h = ((groups - groups.mean(-1, keepdim=True)) * scale).reshape(h.shape)
        return h * like.weight[:, None, None] + like.bias[:, None, None]

    inner = norm(F.conv2d(z, cell.conv1.weight, padding=1), cell.norm1).relu()
    inner = norm(x + F.conv2d(inner, cell.conv2.weight, padding=1), cell.norm2)
    want = norm((z + inner).relu(), cell.norm3)
    assert_within([cell(z, x)], [want], 300 * unit_roundoff(torch.float64))


def test_the_downsampler_is_a_preactivation_block() -> None:
    torch.manual_seed(0)
    down = Downsample(4, 6, momentum=0.5)
    x = 3 + 2 * torch.randn(5, 4, 7, 7)
    assert down(x).shape == (5, 6, 4, 4)
    # A mean of 5 x 49 numbers, in both.
    bound = 2 * 5 * 49 * unit_roundoff(torch.float32)
    assert_within([down.norm1.running_mean], [x.mean((0, 2, 3)) / 2], bound)
    with torch.no_grad():
        down.conv2.weight.zero_()
    assert torch.equal(down(x), F.conv2d(x, down.shortcut.weight, stride=2))


@BOTH
@pytest.mark.parametrize("size", [6, 9])
def test_logits(form: str, size: int) -> None:
    """In eval mode every image has its own."""
    model = model_of(tiny(form)).eval()
    x = images(size=size)
    logits = model(x)
    assert logits.shape == (4, 3) and logits.dtype == torch.float32
    x[0] += 1
    moved = (model(x) != logits).any(1)
    assert moved[0] and not moved[1:].any()


def test_the_multi_stage_model_adds_the_equilibrium_to_its_input() -> None:
    """An f that returns 0 has the equilibrium 0, so that only the encoder and its path are left."""
    model = model_of(tiny("multi_stage")).eval()
    with torch.no_grad():
        for stage in model.equilibria:
            cell: Any = stage.f
            cell.norm3.weight.zero_()
    x = model.downsamplers[0](model.encoder(images()))
    assert torch.equal(model(images()), model.head(x.mean((2, 3))))


@pytest.mark.parametrize("width", [1, 3])
def test_the_cell_is_differentiated_exactly(width: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    cell = ResidualCell(8, width, 4)
    assert_exact_gradients(cell, torch.zeros_like(x), x, beta=0.8, max_steps=8)


@BOTH
def test_the_models_gradients_are_those_of_stored_activations(form: str) -> None:
    found = []
    for adjoint in ("reversible", "hooks", "backprop"):
        model = model_of(tiny(form, adjoint=adjoint))
        found.append(gradients(model, model, images()))
        for stage in model.equilibria:
            assert stage.stats is not None and stage.stats.adjoint == adjoint
    assert_same(found[0], found[2])
    assert_same(found[1], found[2])


def test_batch_normalisation_counts_each_batch_once() -> None:
    model = model_of(tiny("multi_stage"))
    for calls in (1, 2):
        gradients(model, model, images())
        for name, buffer in model.named_buffers():
            if name.endswith("num_batches_tracked"):
                assert buffer == calls, name
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 3 and {norm.momentum for norm in norms} == {0.01}


def _note(read: list[torch.dtype], _: Any, inputs: tuple[Tensor, ...]) -> None:
    read.append(inputs[0].dtype)


@BOTH
def test_autocast(form: str) -> None:
    """Logits move by some roundings of bfloat16; the state keeps the precision of the weights."""
    whole = model_of(tiny(form))(images())
    found = []
    for adjoint in ("reversible", "backprop"):
        model = model_of(tiny(form, adjoint=adjoint), accumulate="autograd")

        def run(x: Tensor, model: VisionModel = model) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return model(x)

        read = []
        model.equilibria[-1].register_forward_pre_hook(partial(_note, read))
        logits = run(images())
        assert logits.dtype == torch.bfloat16 and read == [torch.float32]
        assert 0 < (logits - whole).abs().max() < 0.2 * whole.abs().max()
        found.append(gradients(model, run, images()))
    assert_same(*found)


@pytest.mark.parametrize(
    "form", [pytest.param("single_scale", marks=pytest.mark.slow), "multi_stage"]
)
def test_one_graph_of_the_compiler_holds_the_model(form: str) -> None:
    torch.compiler.reset()
    model = model_of(tiny(form))
    want = gradients(model, model, images())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(gradients(model, compiled, images()), want)
    assert model.stats is not None and model.stats.steps == model.config.steps[-1]


@BOTH
def test_copies_state_dicts_and_the_meta_device(form: str) -> None:
    model = model_of(tiny(form))
    gradients(model, model, images())  # moves the running averages
    model.eval()
    logits = model(images())
    assert torch.equal(copy.deepcopy(model)(images()), logits)
    with torch.device("meta"):
        fresh = VisionModel(model.config).eval()
    fresh.to_empty(device="cpu")
    fresh.reset_parameters()
    for name, buffer in fresh.named_buffers():
        assert torch.equal(buffer, torch.full_like(buffer, name.endswith("running_var"))), name
    assert fresh(images()).isfinite().all()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(images()), logits)
