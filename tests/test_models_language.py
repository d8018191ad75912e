"""The language models: configs, parameters, equations, gradients."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import modelling
from modelling import assert_same, model_of, text, tiny
from torch_revdeq import spectral_radius
from torch_revdeq.models import LanguageConfig, LanguageModel
from torch_revdeq.models.blocks import BLOCKS, rotated, rotations
from torch_revdeq.testing import assert_exact_gradients

BOTH = pytest.mark.parametrize("block", ["modern", "paper"])


def gradients(model: LanguageModel, run: Any, tokens: Tensor) -> dict[str, Tensor]:
    """Of the mean loss of the next tokens."""

    def loss() -> Tensor:
        logits = run(tokens[:, :-1]).flatten(0, 1).float()
        return F.cross_entropy(logits, tokens[:, 1:].flatten())

    return modelling.gradients(model, loss)


# ---- the paper's numbers, and the config -------------------------------------------------------


def test_the_papers_model_has_its_parameters() -> None:
    with torch.device("meta"):
        model = LanguageModel(LanguageConfig.paper())
    d, vocab, context = 768, 50304, 448
    attention = 3 * (d * d + d) + 4 * d * d
    mlp = (d * 4 * d + 4 * d) + (4 * d * 4 * d + 4 * d) + (4 * d * d + d)
    count = sum(p.numel() for p in model.parameters())
    assert count == 2 * vocab * d + context * d + attention + mlp + 2 * (2 * d) == 95_907_840
    assert (model.config.steps, model.config.beta, model.config.tol) == (4, 0.5, 1e-3)
    assert not list(model.buffers())


@pytest.mark.parametrize("config", [tiny(), LanguageConfig.paper(dropout=0.1, state="float64")])
def test_a_config_goes_through_json(config: LanguageConfig) -> None:
    assert LanguageConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 15}, "width: expected a multiple of heads=2, got 15"),
        ({"width": 6}, "width: expected an even number of features for each of heads=2, got 3"),
        ({"heads": 0}, "heads: expected an integer of at least 1, got 0"),
        ({"block": "gpt"}, "block: expected one of 'modern', 'paper', got 'gpt'"),
        ({"dropout": 1.0}, r"dropout: expected a number in \[0, 1\), got 1.0"),
        ({"tied_head": 1}, "tied_head: expected True or False, got 1"),
        ({"steps": 2.0}, "steps: expected an integer"),
        ({"hidden": 0}, "hidden: expected an integer"),
        ({"beta": 1}, "beta: expected another number than 1"),
        ({"beta": 2.0}, r"beta: expected a number in \(0, 2\), got 2.0"),
        ({"tol": -1.0}, "tol: expected a number"),
        ({"state": "float8"}, "state: expected one of"),
        ({"adjoint": "implicit"}, "adjoint: expected one of"),
    ],
)
def test_a_wrong_field_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_an_unknown_key_is_refused_with_what_is_known() -> None:
    with pytest.raises(
        ValueError, match=r"depth: expected a field of LanguageConfig, one of .*ste"
    ):
        LanguageConfig.from_dict({**tiny().to_dict(), "depth": 3})


def test_the_config_and_the_keywords_reach_the_solver() -> None:
    config = tiny(beta=0.8, tol=1e-2, state="float64", adjoint="checkpoint", steps=5)
    model = model_of(config, store_last=0)
    layer = model.equilibrium
    assert layer.beta == 0.8
    want = {"tol": 1e-2, "state": torch.float64, "adjoint": "checkpoint", "max_steps": 5}
    assert layer.options == {**want, "rng": "none", "store_last": 0}
    depths = iter((2, 4))
    model.set_solver(max_steps=lambda: next(depths), tol=None, beta=0.6)
    for depth in (2, 4):
        model(text())
        assert model.stats is not None and model.stats.steps == depth
    assert layer.beta == 0.6
    with pytest.raises(TypeError, match=r"steps: expected an option of solve, one of .*max_steps"):
        model.set_solver(steps=3)
    with pytest.raises(TypeError, match="depth: expected an option of solve"):
        LanguageModel(config, depth=3)


# ---- what is computed --------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("tied", [True, False])
def test_logits_depend_on_the_tokens_before_alone(block: str, tied: bool) -> None:
    model = model_of(tiny(block, tied_head=tied)).eval()
    tokens = text()
    logits = model(tokens)
    assert logits.shape == (2, 8, 11) and logits.dtype == torch.float32
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    moved = (model(changed) != logits).any(-1)
    assert not moved[:, :5].any() and moved[:, 5:].all()
    assert ("head.weight" in model.state_dict()) is not tied


def in_float64(block: str) -> Any:
    """A cell with weights of unit deviation in every parameter, so that no part is small."""
    torch.manual_seed(0)
    cell = BLOCKS[block](8, 2, 12, dropout=0.0).double()
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return cell


def test_the_papers_block_is_its_equations() -> None:
    """With torch's own multi-head attention, to the roundings of some hundred operations."""
    cell = in_float64("paper")
    own = cell.attention
    heads = torch.nn.MultiheadAttention(8, 2, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        heads.in_proj_weight.copy_(torch.cat((own.q.weight, own.k.weight, own.v.weight)))
        heads.out_proj.weight.copy_(own.out.weight)
    z, x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    h = F.layer_norm(z + x, (8,), cell.norm1.weight, cell.norm1.bias)
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    parts = (own.outer_q(h), own.outer_k(h), own.outer_v(h))
    want = z + heads(*parts, attn_mask=later, need_weights=False)[0]
    h = F.layer_norm(want, (8,), cell.norm2.weight, cell.norm2.bias)
    first, second, third = cell.mlp[0], cell.mlp[2], cell.mlp[4]
    h = F.gelu(second(F.gelu(first(h), approximate="tanh")), approximate="tanh")
    torch.testing.assert_close(cell(z, x), want + third(h), rtol=0, atol=1e-12)


def test_the_modern_block_is_its_equations() -> None:
    """Written out for each head, to the roundings of some hundred operations."""
    cell = in_float64("modern")
    z, x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    rotation = rotations(0, 5, 4, z)

    def norm(h: Tensor, weight: Tensor) -> Tensor:
        return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    want = z + x
    queries, keys, values = cell.attention.qkv(norm(want, cell.norm1.weight)).split(8, -1)
    gathered = []
    for part in (slice(0, 4), slice(4, 8)):
        q, k = (rotated(h[..., part], rotation) for h in (queries, keys))
        shares = q @ k.mT / 2 + torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1)
        gathered.append(shares.softmax(-1) @ values[..., part])
    want = want + torch.cat(gathered, -1) @ cell.attention.out.weight.mT
    gate, up = cell.mlp.gate_up(norm(want, cell.norm2.weight)).split(12, -1)
    want = want + (gate * gate.sigmoid() * up) @ cell.mlp.down.weight.mT
    want = norm(want, cell.norm3.weight)
    torch.testing.assert_close(cell(z, x, rotation), want, rtol=0, atol=1e-12)


def test_rotary_positions_are_relative() -> None:
    """Products of queries and keys depend on the distance: to some roundings of float64.

    Each is a sum of 8 products of numbers below 5 in size, whose angles are rounded too.
    """
    q, k = torch.randn(2, 1, 1, 6, 8, dtype=torch.float64)
    near, far = (
        rotated(q, rotation) @ rotated(k, rotation).mT
        for rotation in (rotations(first, 6, 8, q) for first in (0, 100))
    )
    allowed = 100 * 8 * 25 * 2.0**-53 * 4
    assert (near - far).abs().max() <= allowed
    assert (near - q @ k.mT).abs().max() > 0.1
    assert torch.equal(rotated(q, rotations(0, 6, 8, q))[..., 0, :], q[..., 0, :])


def test_the_modern_block_begins_contractive() -> None:
    model = model_of(LanguageConfig(vocab_size=11, width=64, context=32, steps=40, tol=1e-5))
    tokens = text(time=32)
    model(tokens)
    assert model.stats is not None and model.stats.converged
    x, rotation = model.embed(tokens)
    z = model.equilibrium(x, rotation)
    assert spectral_radius(model.cell, z.detach(), x.detach(), rotation) < 0.8


def test_without_branches_the_modern_block_solves_for_its_input() -> None:
    """norm(z + x) = z at z = x of unit mean square.

    It halves differences: z is at most twice the residual away, 2 tol norm(z), with 16 for norm(z),
    and some times the 2**-20 of the state. The norm's eps moves it by 1e-6 / 8 more.
    """
    tol = 1e-6
    model = model_of(tiny(steps=60, tol=tol))
    cell: Any = model.cell
    with torch.no_grad():
        cell.attention.out.weight.zero_()
        cell.mlp.down.weight.zero_()
    x, rotation = model.embed(text())
    z = model.equilibrium(x, rotation)
    unit = F.rms_norm(x, (16,))
    assert (z - unit).abs().max() <= 2 * tol * 16 + 4 * 2.0**-20 + 1e-6 / 8


# ---- gradients ---------------------------------------------------------------------------------


@BOTH
def test_the_cell_is_differentiated_exactly(block: str) -> None:
    torch.manual_seed(0)
    cell = BLOCKS[block](16, 2, 32, dropout=0.1)
    x = torch.randn(2, 6, 16, requires_grad=True)
    rotation = rotations(0, 6, 8, x) if block == "modern" else None
    options: dict[str, Any] = {"max_steps": 6, "beta": 0.8, "rng": "shared"}
    assert_exact_gradients(cell, torch.zeros_like(x), x, rotation, **options)


@BOTH
def test_the_models_gradients_are_those_of_stored_activations(block: str) -> None:
    tokens = text()
    found = []
    for adjoint in ("reversible", "hooks", "backprop"):
        model = model_of(tiny(block, dropout=0.2, tied_head=block == "modern", adjoint=adjoint))
        torch.manual_seed(3)
        found.append(gradients(model, model, tokens))
        assert model.stats is not None and model.stats.adjoint == adjoint
    assert_same(found[0], found[2])
    assert_same(found[1], found[2])


def test_one_dropout_mask_serves_the_whole_solve() -> None:
    model = model_of(tiny(dropout=0.5, steps=40, tol=1e-4))
    model(text())
    assert model.stats is not None and model.stats.converged
    model.set_solver(rng="auto")
    model(text())
    assert not model.stats.converged


@BOTH
def test_autocast(block: str) -> None:
    """Logits move by some roundings of bfloat16, and gradients are those of stored activations."""
    tokens = text()
    whole = model_of(tiny(block))(tokens)
    found = []
    for adjoint in ("reversible", "backprop"):
        model = model_of(tiny(block, adjoint=adjoint), accumulate="autograd")

        def run(tokens: Tensor, model: LanguageModel = model) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return model(tokens)

        logits = run(tokens)
        assert logits.dtype == torch.bfloat16
        assert 0 < (logits - whole).abs().max() < 0.1 * whole.abs().max()
        found.append(gradients(model, run, tokens))
    assert_same(*found)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("block", ["modern", pytest.param("paper", marks=pytest.mark.slow)])
def test_one_graph_of_the_compiler_holds_the_model(block: str) -> None:
    torch.compiler.reset()
    model, tokens = model_of(tiny(block)), text()
    want = gradients(model, model, tokens)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(gradients(model, compiled, tokens), want)
    assert model.stats is not None and model.stats.steps == 3
    model.set_solver(max_steps=5)
    logits = compiled(tokens)
    assert model.stats.steps == 5
    assert torch.equal(logits, model(tokens))


@BOTH
def test_copies_state_dicts_and_the_meta_device(block: str) -> None:
    model, tokens = model_of(tiny(block)), text()
    logits = model(tokens)
    assert torch.equal(copy.deepcopy(model)(tokens), logits)
    with torch.device("meta"):
        fresh = LanguageModel(model.config)
    fresh.to_empty(device="cpu")
    torch.manual_seed(5)
    fresh.reset_parameters()
    for (name, got), want in zip(fresh.named_parameters(), model.parameters(), strict=True):
        # A deviation estimated from n numbers has one of at most 1 / sqrt(2 n) of it.
        assert (got.std() - want.std()).abs() <= 5 * want.std() / want.numel() ** 0.5, name
        assert (got.mean() - want.mean()).abs() <= 10 * want.std() / want.numel() ** 0.5, name
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(tokens), logits)


@pytest.mark.parametrize(
    ("tokens", "kind", "message"),
    [
        (text().int(), TypeError, "tokens: expected int64, got torch.int32"),
        (text()[0], ValueError, r"tokens: expected the shape \(batch, time\), got \(8,\)"),
        (text(time=13), ValueError, "tokens: expected at most context=12 of them, got 13"),
        (text()[:, :0], ValueError, "tokens: expected at least one"),
    ],
)
def test_wrong_tokens_are_refused(tokens: Tensor, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        model_of(tiny())(tokens)
