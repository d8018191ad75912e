"""Generation with the language models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.modelling import model_of, text, tiny
from torch_revdeq.models import LanguageModel
from torch_revdeq.models.generation import Text, sample

BOTH = pytest.mark.parametrize("block", ["modern", "paper"])


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
        reader = Text(model, model.config.context, warm_start)
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
    # Of the same z: a product with one row or with all rows may be summed in another order.
    width = model.embedding.weight.shape[1]
    rounded = 2 * width * torch.finfo(torch.float64).eps * size * row
    assert (cold.logits[-1] - model(tokens)[:, -1]).abs().max() <= rounded


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
