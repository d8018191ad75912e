"""The recursive reasoning model is differentiated through every recursion, exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models import modelling
from tests.models.modelling import assert_same
from tests.models.recursing import BOTH, gradients, leaves, loss_of, model_of, questions, tiny
from torch_revdeq.models import RecursiveModel
from torch_revdeq.testing import assert_exact_gradients


@BOTH
def test_the_cell_is_differentiated_exactly(mixing: str) -> None:
    model = model_of(tiny(mixing))
    x, rotation = model.embed(questions())
    start = model.start(3)
    stats = assert_exact_gradients(
        model.cell, start.z, x.detach().requires_grad_(), rotation, max_steps=6, beta=0.8
    )
    assert stats.state == "exact" and stats.reconstruction_error == 0


@BOTH
def test_the_models_gradients_are_those_of_stored_activations(mixing: str) -> None:
    found = []
    for adjoint in ("reversible", "hooks", "backprop"):
        model = model_of(tiny(mixing, adjoint=adjoint))
        found.append(gradients(model, model, questions()))
        assert model.stats is not None and model.stats.adjoint == adjoint
    assert_same(found[0], found[2])
    assert_same(found[1], found[2])


def test_the_last_step_alone_has_another_gradient() -> None:
    """That of a pass of one step, from the pair that the others reached."""
    tokens = questions()
    model, last = model_of(tiny()), model_of(tiny(), backward_steps=1)
    with torch.no_grad():
        carry = model_of(tiny(steps=2))(tokens).carry
    one = model_of(tiny(steps=1))

    found = modelling.gradients(last, lambda: loss_of(last(tokens), tokens))
    assert_same(found, modelling.gradients(one, lambda: loss_of(one(tokens, carry), tokens)))
    whole = modelling.gradients(model, lambda: loss_of(model(tokens), tokens))
    assert not torch.equal(found["embedding.weight"], whole["embedding.weight"])


@BOTH
def test_autocast(mixing: str) -> None:
    """Logits move by some roundings of bfloat16, and gradients are those of stored activations."""
    tokens = questions()
    whole = model_of(tiny(mixing))(tokens).logits
    found = []
    for adjoint in ("reversible", "backprop"):
        model = model_of(tiny(mixing, adjoint=adjoint), accumulate="autograd")

        def run(*args: Any, model: RecursiveModel = model) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return model(*args)

        output = run(tokens)
        assert output.logits.dtype == torch.bfloat16
        assert {leaf.dtype for leaf in leaves(output.carry)} == {torch.float32}
        assert 0 < (output.logits - whole).abs().max() < 0.1 * whole.abs().max()
        found.append(gradients(model, run, tokens))
    assert_same(*found)


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(mixing: str, dtype: torch.dtype) -> None:
    tokens, found = questions(), []
    for adjoint in ("reversible", "backprop"):
        # In float64 the pair is one of floats, whose way back rounds.
        model = model_of(tiny(mixing, adjoint=adjoint), accumulate="autograd").to(dtype)
        assert model(tokens).logits.dtype == dtype
        found.append(gradients(model, model, tokens))
    if dtype != torch.float64:
        assert_same(*found)
    else:
        for name, grad in found[1].items():
            assert (found[0][name] - grad).abs().max() <= 1e-9 * grad.abs().max(), name


@pytest.mark.parametrize("mixing", ["mlp", pytest.param("attention", marks=pytest.mark.slow)])
def test_one_graph_of_the_compiler_holds_the_model(mixing: str) -> None:
    torch.compiler.reset()
    model, tokens = model_of(tiny(mixing)), questions()
    want = gradients(model, model, tokens)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(gradients(model, compiled, tokens), want)
    assert model.stats is not None and model.stats.steps == 3
