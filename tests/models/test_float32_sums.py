"""In pure 16 bits on a CPU the models' gradients are float32's, to some roundings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.modelling import gradients, model_of, tiny
from torch_revdeq import solve
from torch_revdeq.models.blocks import BLOCKS
from torch_revdeq.models.float32_sums import Embedding, LayerNorm
from torch_revdeq.testing import assert_close_to_float32, assert_exact_gradients

ROWS = 4096
"""So many equal summands are far beyond the 256 at which a sum in bfloat16 stops growing."""

NARROW = [torch.bfloat16, torch.float16]


class NormCell(nn.Module):
    """A cell whose state is normalized."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.of_z = norm, nn.Linear(8, 8)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.norm(0.5 * self.of_z(z) + x)


def gradient_of_the_bias(norm: nn.LayerNorm, dtype: torch.dtype) -> Tensor:
    """Of ROWS ones: ROWS."""
    norm(torch.randn(ROWS, 8, dtype=dtype)).sum().backward()
    assert norm.bias.grad is not None
    return norm.bias.grad.float()


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
def test_torchs_own_norm_stops_counting_at_256(parameters: torch.dtype) -> None:
    """The reason for ours. Should this fail, torch has mended it, and ours may go."""
    own = gradient_of_the_bias(nn.LayerNorm(8, dtype=parameters), torch.bfloat16)
    assert own.max() < 0.8 * ROWS
    ours = gradient_of_the_bias(LayerNorm(8, dtype=parameters), torch.bfloat16)
    assert torch.equal(ours, torch.full((8,), float(ROWS)))


@pytest.mark.parametrize(("norm", "right"), [(nn.LayerNorm, False), (LayerNorm, True)])
def test_autocast_does_not_change_that(norm: type[nn.LayerNorm], right: bool) -> None:
    """A product under autocast is in bfloat16, and the norm after it takes it as it is."""
    layer = nn.Sequential(nn.Linear(8, 8), norm(8))
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(ROWS, 8)).sum().backward()
    grad = layer[1].bias.grad
    assert isinstance(grad, Tensor) and grad.dtype == torch.float32
    assert torch.equal(grad, torch.full((8,), float(ROWS))) is right


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [*NARROW, torch.float32, torch.float64])
def test_the_norm_keeps_dtypes_and_values(dtype: torch.dtype, affine: bool) -> None:
    x = torch.randn(5, 8, dtype=dtype)
    own, torchs = (
        kind(8, elementwise_affine=affine, dtype=dtype) for kind in (LayerNorm, nn.LayerNorm)
    )
    out, want = own(x), torchs(x)
    assert out.dtype == dtype
    assert torch.allclose(out, want, atol=2 * torch.finfo(dtype).eps, rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", NARROW)
def test_the_embedding_counts_every_place(dtype: torch.dtype) -> None:
    embedding = Embedding(3, 4, padding_idx=2, dtype=dtype)
    tokens = torch.zeros(2000, dtype=torch.int64)
    tokens[:7] = 2
    read = embedding(tokens)
    assert read.dtype == dtype
    with torch.no_grad():
        assert torch.equal(read, embedding(tokens))
    read.sum().backward()
    grad = embedding.weight.grad
    assert grad is not None and grad.dtype == dtype
    # 1993 rounded to bfloat16 is 1992.
    assert torch.equal(grad[0], torch.full((4,), 1993.0).to(dtype))
    assert not grad[1:].any()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("block", [*BLOCKS])
def test_a_language_model_in_bfloat16(block: str, tied: bool) -> None:
    """Every parameter: text in which a few tokens are frequent, as in a real one."""
    generator = torch.Generator().manual_seed(2)
    tokens = (11 * torch.rand(256, 12, generator=generator) ** 3).long()
    found = {}
    for wide in (False, True):
        model = model_of(tiny(block, tied_head=tied)).bfloat16()
        model = model.float() if wide else model

        def loss(model: Any = model) -> Tensor:
            logits = model(tokens[:, :-1]).float()
            return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

        found[wide] = gradients(model, loss)
    least = 2.0**-8 * max(float(grad.norm()) for grad in found[True].values())
    for name, want in found[True].items():
        off = (found[False][name].float() - want).norm() / max(float(want.norm()), least)
        assert off < 0.1, (name, off)


def test_the_assertion_sees_what_exact_gradients_do_not() -> None:
    torch.manual_seed(0)
    x = torch.randn(ROWS, 8, dtype=torch.bfloat16) + 1
    for norm, right in ((nn.LayerNorm(8), False), (LayerNorm(8), True)):
        cell = NormCell(norm).bfloat16()
        before = {name: p.detach().clone() for name, p in cell.named_parameters()}
        assert_exact_gradients(cell, torch.zeros_like(x), x, max_steps=3)
        if right:
            off = assert_close_to_float32(cell, torch.zeros_like(x), x, max_steps=3)
            assert {*off} == {"norm.weight", "norm.bias", "of_z.weight", "of_z.bias", "z00"}
        else:
            with pytest.raises(AssertionError, match=r"the gradient of norm\..*a sum that"):
                assert_close_to_float32(cell, torch.zeros_like(x), x, max_steps=3)
        for name, parameter in cell.named_parameters():
            assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, before[name])
            assert parameter.grad is None


def test_the_assertion_names_what_it_cannot_widen() -> None:
    w = torch.randn(8, 8, dtype=torch.bfloat16, requires_grad=True)
    x = torch.randn(4, 8, dtype=torch.bfloat16)

    def f(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.1 * z @ w.to(z.dtype) + x)

    assert solve(f, x, x, max_steps=2).z.dtype == torch.bfloat16
    with pytest.raises(TypeError, match=r"f: expected to read parameters.*pass it in args"):
        assert_close_to_float32(f, torch.zeros_like(x), x, max_steps=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_assertion_draws_the_same_masks_twice(dtype: torch.dtype) -> None:
    cell = NormCell(nn.Dropout(0.5)).to(dtype)
    x = torch.randn(64, 8, dtype=dtype)
    assert_close_to_float32(cell, torch.zeros_like(x), x, max_steps=3)


def test_the_assertion_reads_a_graph_outside_twice() -> None:
    """And leaves it as it was: for a tensor of float32 that f casts, and one that it refuses."""
    w, x = torch.randn(8, requires_grad=True), torch.randn(4, 8, dtype=torch.bfloat16)
    shift = torch.sin(w)

    def f(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.1 * z + x + shift.to(z.dtype))

    assert {*assert_close_to_float32(f, torch.zeros_like(x), x, max_steps=2)} == {
        "leaf 1 of f",
        "z00",
    }
    w = w.detach().bfloat16().requires_grad_()
    shift = torch.sin(w)
    with pytest.raises(TypeError, match=r"f: expected to read parameters.*pass it in args"):
        assert_close_to_float32(f, torch.zeros_like(x), x, max_steps=2)
    shift.sum().backward()


def test_the_assertion_sees_gradients_that_are_nan_or_missing() -> None:
    """Also beside others, of which the first is right."""

    class Spoiled(NormCell):
        spoil = "nan"

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            if z.dtype == torch.bfloat16:
                bias = self.of_z.bias
                spoiled = bias.detach() if self.spoil == "missing" else bias * (bias - bias).sqrt()
                return self.norm(0.5 * F.linear(z, self.of_z.weight) + x + spoiled)
            return super().forward(z, x)

    torch.manual_seed(0)
    x, cell = torch.randn(16, 8, dtype=torch.bfloat16), Spoiled(LayerNorm(8)).bfloat16()
    options: dict[str, Any] = {"max_steps": 2, "adjoint": "backprop"}
    with pytest.raises(AssertionError, match=r"the gradient of of_z\.bias: .*difference of nan"):
        assert_close_to_float32(cell, torch.zeros_like(x), x, **options)
    cell.spoil = "missing"
    with pytest.raises(AssertionError, match=r"gradients: expected those of .*of_z\.bias"):
        assert_close_to_float32(cell, torch.zeros_like(x), x, **options)
