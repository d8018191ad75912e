"""The recursive reasoning model: its config, its equations, what it carries from pass to pass."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.recursing import BOTH, leaves, model_of, questions, tiny
from tests.tolerances import assert_within, unit_roundoff
from torch_revdeq.models import RecursiveConfig, RecursiveModel, recursion
from torch_revdeq.models.blocks import rotated, rotations
from torch_revdeq.models.recursion import MixingMLP
from torch_revdeq.models.recursive import HALT_BIAS

# ---- the config --------------------------------------------------------------------------------


def test_trms_sizes_have_its_parameters() -> None:
    """5 million for Sudoku, as the paper says, whose MLP over positions has 97 of them."""
    with torch.device("meta"):
        model = RecursiveModel(RecursiveConfig.trm(vocab_size=11, length=97))
    block = 3 * 512 * 1536 + 3 * 97 * 272
    count = sum(p.numel() for p in model.parameters())
    assert count == 2 * block + 2 * 11 * 512 + 513 == 4_888_673
    assert (model.config.latent_steps, model.config.steps) == (6, 2)


@pytest.mark.parametrize("config", [tiny(), RecursiveConfig.trm(11, 81, state="float64")])
def test_a_config_goes_through_json(config: RecursiveConfig) -> None:
    assert RecursiveConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixing": "conv"}, "mixing: expected one of 'mlp', 'attention', got 'conv'"),
        ({"mixing": "attention", "width": 18}, r"width: expected a multiple of 2 \* heads=4, got"),
        ({"latent_steps": 0}, "latent_steps: expected an integer of at least 1, got 0"),
        ({"length": 2.0}, "length: expected an integer"),
        ({"hidden": 0}, "hidden: expected an integer"),
        ({"layers": True}, "layers: expected an integer"),
        ({"beta": 1}, "beta: expected a number other than 1"),
        ({"adjoint": "last"}, "adjoint: expected one of"),
    ],
)
def test_a_wrong_field_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_unknown_keys_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cycles: expected a field of RecursiveConfig, one of"):
        RecursiveConfig.from_dict({**tiny().to_dict(), "cycles": 3})
    with pytest.raises(TypeError, match="cycles: expected an option of solve"):
        RecursiveModel(tiny(), cycles=3)


# ---- what is computed --------------------------------------------------------------------------


def mixed(block: Any, h: Tensor) -> Tensor:
    """What a block's positions exchange, feature by feature or head by head."""
    mix = block.mix
    if isinstance(mix, MixingMLP):
        gate, up = (mix.mlp.gate_up.weight @ h).chunk(2, 1)
        return mix.mlp.down.weight @ (gate * gate.sigmoid() * up)
    rotation, gathered = rotations(0, 6, 8, h), []
    queries, keys, values = (h @ mix.attention.qkv.weight.mT).split(16, -1)
    for part in (slice(0, 8), slice(8, 16)):
        q, k = (rotated(t[..., part], rotation) for t in (queries, keys))
        gathered.append((q @ k.mT / 8**0.5).softmax(-1) @ values[..., part])
    return torch.cat(gathered, -1) @ mix.attention.out.weight.mT


@BOTH
def test_the_cell_is_its_equations(mixing: str) -> None:
    """Written out in float64: to the roundings of some thousand operations, of numbers near 1."""
    model = model_of(tiny(mixing)).double()
    cell = model.cell
    blocks: Any = cell.net
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)

    def norm(h: Tensor) -> Tensor:
        return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def net(h: Tensor) -> Tensor:
        for block in blocks:
            h = norm(h + mixed(block, h))
            gate, up = (h @ block.mlp.gate_up.weight.mT).chunk(2, -1)
            h = norm(h + (gate * gate.sigmoid() * up) @ block.mlp.down.weight.mT)
        return h

    answer, latent, x = torch.randn(3, 2, 6, 16, dtype=torch.float64)
    want = net(net(latent + answer + x) + answer + x)
    rotation = rotations(0, 6, 8, x) if mixing == "attention" else None
    got = cell((answer, latent), x, rotation)
    bound = 3000 * unit_roundoff(torch.float64)
    assert_within(list(got), [net(answer + want), want], bound)


@BOTH
def test_every_position_reads_every_other(mixing: str) -> None:
    model, tokens = model_of(tiny(mixing)), questions()
    changed = tokens.clone()
    changed[0, 2] = (changed[0, 2] + 1) % 5
    moved = (model(changed).logits != model(tokens).logits).any(-1)
    assert moved[0].all() and not moved[1:].any()


def test_halting_begins_improbable() -> None:
    torch.manual_seed(0)
    halt = RecursiveModel(tiny())(questions()).halt
    assert torch.equal(halt, torch.full_like(halt, HALT_BIAS))


def growth(mixing: str) -> float:
    """How many times the gradient of 16 recursions is as large as that of two."""
    sizes = []
    for steps in (1, 8):
        model = model_of(tiny(mixing, width=64, length=36, steps=steps))
        tokens = torch.randint(5, (4, 36), generator=torch.Generator().manual_seed(1))
        F.cross_entropy(model(tokens).logits.flatten(0, 1), tokens.flatten()).backward()
        grads = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        sizes.append(float(torch.stack(grads).norm()))
    return sizes[1] / sizes[0]


@BOTH
def test_the_gradient_does_not_grow_with_the_steps_at_first(mixing: str) -> None:
    assert growth(mixing) < 10


def test_with_branches_of_unit_gain_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for BRANCH_GAIN."""
    monkeypatch.setattr(recursion, "BRANCH_GAIN", 1.0)
    assert growth("mlp") > 1e6


# ---- passes ------------------------------------------------------------------------------------


@BOTH
def test_a_pass_goes_on_where_the_one_before_ended(mixing: str) -> None:
    """Three passes of two steps are one of six, bit for bit."""
    tokens = questions()
    want = model_of(tiny(mixing, steps=6))(tokens)
    model = model_of(tiny(mixing, steps=2))
    output = model(tokens)
    for _ in range(2):
        assert not torch.equal(output.logits, want.logits)
        output = model(tokens, output.carry)
    assert torch.equal(output.logits, want.logits) and torch.equal(output.halt, want.halt)
    for got, leaf in zip(leaves(output.carry), leaves(want.carry), strict=True):
        assert torch.equal(got, leaf) and not got.requires_grad


def test_passes_of_an_odd_number_of_steps() -> None:
    """They go on bit for bit as floats, and in fixed point to a unit.

    There a half step rounds ties in the direction that its number in the solve gives it.
    """
    tokens = questions()
    for state, unit in (("float32", 0.0), ("exact", 2.0**-20)):
        want = model_of(tiny(state=state, steps=2))(tokens)
        model = model_of(tiny(state=state, steps=1))
        output = model(tokens, model(tokens).carry)
        for got, leaf in zip(leaves(output.carry), leaves(want.carry), strict=True):
            # A unit here is a few after a recursion whose net expands by little.
            assert (got - leaf).abs().max() <= 4 * unit


def test_restart_touches_the_samples_that_it_names_alone() -> None:
    model, tokens, others = model_of(tiny()), questions(), questions(seed=2)
    carry = model(tokens).carry
    which = torch.tensor([False, True, False])
    restarted = model.restart(carry, which)
    for new, old, fresh in zip(*map(leaves, (restarted, carry, model.start(3))), strict=True):
        assert torch.equal(new[~which], old[~which]) and torch.equal(new[which], fresh[which])
    mixed = torch.where(which[:, None], others, tokens)
    got = model(mixed, restarted).logits
    assert torch.equal(got[~which], model(tokens, carry).logits[~which])
    assert torch.equal(got[which], model(others).logits[which])


def test_prediction_is_that_of_the_last_pass() -> None:
    model, tokens = model_of(tiny()), questions()
    model.head.eval()
    output = model(tokens)
    for _ in range(3):
        output = model(tokens, output.carry)
    found = model.predict(tokens, passes=4)
    assert torch.equal(found.tokens, output.logits.argmax(-1))
    assert torch.equal(found.confidence, output.halt.sigmoid())
    assert found.passes.tolist() == [4, 4, 4] and found.tokens.dtype == torch.int64
    assert model.training and not model.head.training
    assert not found.confidence.requires_grad


def test_a_sample_that_halts_keeps_its_answer() -> None:
    """Halting after passes that differ between the samples, of which one never halts."""
    model, tokens = model_of(tiny()), questions()

    def passes() -> list[Any]:
        outputs = [model(tokens)]
        while len(outputs) < 4:
            outputs.append(model(tokens, outputs[-1].carry))
        return outputs

    # A bias with which the logit of one sample is above 0 after some pass, that of another never.
    highest = torch.stack([output.halt for output in passes()]).amax(0).sort().values
    with torch.no_grad():
        model.halt.bias.sub_(highest[:2].mean())
    outputs = passes()
    halts = torch.stack([output.halt for output in outputs]) > 0
    wanted = [next((i for i in range(4) if halts[i, k]), 3) for k in range(3)]
    found = model.predict(tokens, passes=4, halt=True)
    assert found.passes.tolist() == [i + 1 for i in wanted] and len(set(wanted)) > 1
    for sample, i in enumerate(wanted):
        assert torch.equal(found.tokens[sample], outputs[i].logits[sample].argmax(-1))


def test_prediction_ends_when_all_have_halted() -> None:
    model, tokens = model_of(tiny()), questions()
    torch.nn.init.constant_(model.halt.bias, 9.0)
    calls = []
    model.cell.register_forward_pre_hook(lambda *_: calls.append(1))
    assert model.predict(tokens, passes=4, halt=True).passes.tolist() == [1, 1, 1]
    assert len(calls) == 6  # three steps of two recursions


@pytest.mark.parametrize(
    ("tokens", "kind", "message"),
    [
        (questions().int(), TypeError, "tokens: expected int64, got torch.int32"),
        (questions()[0], ValueError, r"tokens: expected the shape \(batch, 6\), got \(6,\)"),
        (questions()[:, :5], ValueError, r"tokens: expected the shape \(batch, 6\), got \(3, 5\)"),
        (
            questions() - 100,
            IndexError,
            r"tokens: expected each in 0 to .* got -100; .*vocab_size",
        ),
        (
            questions() + 99,
            IndexError,
            r"tokens: expected each in 0 to .* got 1\d\d",
        ),
    ],
)
def test_wrong_tokens_are_refused(tokens: Tensor, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        model_of(tiny())(tokens)


def test_a_carry_of_other_samples_is_refused() -> None:
    model = model_of(tiny())
    carry = model(questions(2)).carry
    with pytest.raises(ValueError, match=r"carry: expected tensors of the shape \(3, 6, 16\), got"):
        model(questions(3), carry)
    for other in (tuple(carry), model(questions(2)), carry.z[0]):
        message = rf"carry: expected a Carry or None, got {type(other).__name__}; pass output.carry"
        with pytest.raises(TypeError, match=message):
            model(questions(2), other)
        with pytest.raises(TypeError, match=message):
            model.restart(other, torch.tensor([True, False]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="passes: expected an integer of at least 1, got 0"):
        model.predict(questions(), 0)


@pytest.mark.parametrize(
    ("which", "kind", "message"),
    [
        (
            torch.ones(2),
            TypeError,
            r"which: expected a bool tensor, .* got torch.float32; output",
        ),
        ([True, False], TypeError, "which: expected a bool tensor, one for each sample, got list"),
        (torch.ones(3) > 0, ValueError, r"which: expected the shape \(2,\), .* got \(3,\)"),
        (torch.ones(2, 1) > 0, ValueError, r"which: expected the shape \(2,\), .* got \(2, 1\)"),
    ],
)
def test_what_names_no_samples_is_refused(which: Any, kind: type[Exception], message: str) -> None:
    model = model_of(tiny())
    carry = model(questions(2)).carry
    with pytest.raises(kind, match=message):
        model.restart(carry, which)


@BOTH
def test_copies_state_dicts_and_the_meta_device(mixing: str) -> None:
    model, tokens = model_of(tiny(mixing)), questions()
    logits = model(tokens).logits
    assert torch.equal(copy.deepcopy(model)(tokens).logits, logits)
    with torch.device("meta"):
        fresh = RecursiveModel(model.config)
    fresh.to_empty(device="cpu")
    torch.manual_seed(0)
    fresh.reset_parameters()
    for (name, got), want in zip(fresh.named_parameters(), model.parameters(), strict=True):
        if not name.startswith("halt"):
            # A deviation estimated from n numbers has one of at most 1 / sqrt(2 n) of it.
            assert (got.std() - want.std()).abs() <= 5 * want.std() / want.numel() ** 0.5, name
    for start in (fresh.answer_start, fresh.latent_start):
        assert start.isfinite().all() and 0.2 < start.std() < 2
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(tokens).logits, logits)
