"""The language models: shapes, parameters, gradients, and generation."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torch_revdeq import spectral_radius
from torch_revdeq.models import LanguageConfig, LanguageModel
from torch_revdeq.models.blocks import BLOCKS, rotated, rotations
from torch_revdeq.models.generation import Text, sample
from torch_revdeq.testing import assert_exact_gradients

BOTH = pytest.mark.parametrize("block", ["modern", "paper"])


def tiny(block: str = "modern", **changes: Any) -> LanguageConfig:
    sizes = {"vocab_size": 11, "width": 16, "heads": 2, "context": 12, "steps": 3}
    return LanguageConfig(**{**sizes, "block": block, **changes})


def model_of(config: LanguageConfig, seed: int = 0, **options: Any) -> LanguageModel:
    torch.manual_seed(seed)
    return LanguageModel(config, **options)


def text(batch: int = 2, time: int = 8, seed: int = 1) -> Tensor:
    return torch.randint(11, (batch, time), generator=torch.Generator().manual_seed(seed))


def gradients(model: torch.nn.Module, run: Any, tokens: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    F.cross_entropy(run(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    return found


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, grad in want.items():
        assert torch.equal(got[name], grad), name
        assert grad.count_nonzero() > 0, name


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


# ---- generation --------------------------------------------------------------------------------


@BOTH
def test_greedy_generation_takes_the_most_probable_token(block: str) -> None:
    """Beyond the context too, of which the last tokens are read."""
    model = model_of(tiny(block, dropout=0.5))
    got = tokens = text(time=5)
    model.eval()
    for _ in range(10):
        logits = model(got[:, -12:])[:, -1]
        got = torch.cat((got, logits.argmax(-1, keepdim=True)), 1)
    model.train()
    model.dropout.eval()
    assert torch.equal(model.generate(tokens, 10, temperature=0), got)
    assert model.training and not model.dropout.training
    assert torch.equal(model.generate(tokens, 0), tokens)


class Reader:
    """Reads a text token by token; the logits after each, and what their solves took."""

    def __init__(self, model: LanguageModel, warm_start: bool, tokens: Tensor, first: int) -> None:
        self.logits, self.steps, self.positions = [], [], []
        reader = Text(model, warm_start)
        count = model.cell.register_forward_pre_hook(self._count)
        with torch.no_grad():
            for end in range(first, tokens.shape[1] + 1):
                self.logits.append(reader.read(tokens[:, :end]))
                assert model.stats is not None
                self.steps.append(model.stats.steps)
        count.remove()

    def _count(self, _: Any, inputs: tuple[Tensor, ...]) -> None:
        self.positions.append(inputs[0].shape[1])


@BOTH
def test_a_warm_start_takes_fewer_steps_to_the_same_logits(block: str) -> None:
    """In float64, to what tol allows.

    Each solve ends where norm(z - f(z)) <= tol norm(f), for B T tokens of W numbers, and so within
    tol norm(f) / (1 - L) of its equilibrium for an f that contracts by L < 0.9. In the warm one the
    tokens before are as far from theirs. `norm_out` (or none) is given z of the same size, and a
    logit is its product with a row of the head.
    """
    tol, context = 1e-7, 9
    model = model_of(tiny(block, tol=tol, steps=200), seed=2).double().eval()
    if block == "paper":
        model.equilibrium.f = Fifth(model.cell)
    tokens = text(batch=2, time=context)
    cold, warm = (Reader(model, start, tokens, 4) for start in (False, True))
    assert warm.steps[0] == cold.steps[0] < 200
    assert sum(warm.steps) < sum(cold.steps)
    assert set(warm.positions) == {4, 1} and set(cold.positions) == set(range(4, context + 1))
    x, rotation = model.embed(tokens)
    size = model.equilibrium(x, rotation).norm()
    row = model.embedding.weight.norm(dim=1).max()
    allowed = 2 * 10 * tol * size * row
    for a, b in zip(cold.logits, warm.logits, strict=True):
        assert (a - b).abs().max() <= allowed
    assert torch.equal(cold.logits[-1], model(tokens)[:, -1])


class Fifth(torch.nn.Module):
    """A fifth of what a block returns: the paper's adds to z, and has no fixed point to reach."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block
        self.keys_values = block.keys_values

    def forward(self, *args: Any) -> Tensor:
        return self.block(*args) / 5


def test_without_an_equilibrium_nothing_is_begun_there() -> None:
    """Few steps, or no tol: each token is read as ``forward`` reads it."""
    tokens = text()
    for tol, steps in ((None, 3), (1e-6, 2)):
        model = model_of(tiny(tol=tol, steps=steps)).eval()
        reader = Reader(model, True, tokens, 5)
        for n, logits in enumerate(reader.logits, 5):
            assert torch.equal(logits, model(tokens[:, :n])[:, -1])


def test_sampling_follows_its_generator() -> None:
    model, tokens = model_of(tiny()), text()
    first, second, third = (
        model.generate(tokens, 6, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second) and not torch.equal(first, third)
    assert torch.equal(first[:, :8], tokens) and first.shape == (2, 14)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0.1, 0.2, 0.3, 0.4]),
        ({"top_k": 2}, [0, 0, 3 / 7, 4 / 7]),
        ({"top_p": 0.39}, [0, 0, 0, 1]),
        ({"top_p": 0.41}, [0, 0, 3 / 7, 4 / 7]),
        ({"top_p": 1.0}, [0.1, 0.2, 0.3, 0.4]),
        ({"top_k": 3, "top_p": 0.5}, [0, 0, 3 / 7, 4 / 7]),
        ({"temperature": 0.5}, [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
    ],
)
def test_sampled_shares(options: dict[str, Any], kept: list[float]) -> None:
    """20,000 draws: five standard deviations of a share are at most 5 sqrt(1/4 / 20000)."""
    shuffle = torch.tensor([2, 0, 3, 1])
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()[shuffle].expand(20_000, 4)
    given = {"temperature": 1.0, "top_k": None, "top_p": None, **options}
    drawn = sample(logits, generator=torch.Generator().manual_seed(0), **given)
    shares = torch.bincount(drawn[:, 0], minlength=4) / len(drawn)
    want = torch.tensor(kept)[shuffle]
    assert (shares - want).abs().max() <= 5 * (0.25 / 20_000) ** 0.5
    assert not shares[want == 0].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": torch.tensor([[3, 11]])}, "tokens: expected each in 0 to 10, got 11"),
        ({"tokens": torch.tensor([[-1, 3]])}, "tokens: expected each in 0 to 10, got -1"),
        ({"tokens": torch.zeros(1, 0, dtype=torch.int64)}, "tokens: .* got an empty prompt"),
        ({"new_tokens": -1}, "new_tokens: expected an integer of at least 0, got -1"),
        ({"temperature": -0.1}, "temperature: expected a number of at least 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature: expected"),
        ({"top_k": 0}, "top_k: expected an integer of at least 1, got 0"),
        ({"top_k": 12}, "top_k: expected at most vocab_size=11, got 12"),
        ({"top_p": 0.0}, r"top_p: expected a number in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, r"top_p: expected a number in \(0, 1\], got 1.1"),
    ],
)
def test_wrong_arguments_of_generate_are_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"tokens": text(), "new_tokens": 1, **changes}
    model = model_of(tiny())
    with pytest.raises(ValueError, match=message):
        model.generate(**arguments)
    assert model.training
