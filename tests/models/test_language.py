"""The language models: configs, parameters, what they compute, gradients."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models import modelling
from tests.models.modelling import assert_same, model_of, text, tiny
from torch_revdeq import spectral_radius
from torch_revdeq.models import LanguageConfig, LanguageModel

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
        ({"beta": 1}, "beta: expected a number other than 1"),
        ({"beta": 2.0}, r"beta: expected a number in \(0, 2\), got 2.0"),
        ({"tol": -1.0}, "tol: expected a number"),
        ({"state": "float8"}, "state: expected 'auto', 'exact' or one of"),
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
    with pytest.raises(TypeError, match=r"^steps: expected an option of solve; did you mean max_s"):
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
        (text() - 100, IndexError, r"tokens: expected each in 0 to .* got -100; .*vocab_size"),
        (text() + 99, IndexError, r"tokens: expected each in 0 to .* got 1\d\d"),
    ],
)
def test_wrong_tokens_are_refused(tokens: Tensor, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        model_of(tiny())(tokens)
