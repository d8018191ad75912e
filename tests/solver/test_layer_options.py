"""The options of a layer: attributes, copies, a learned beta, options of one call."""

from __future__ import annotations

import copy
import io
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.solver.cells import MLP
from tests.solver.solving import inputs
from torch_revdeq import LinearCell, RevDEQ, set_solver, solve
from torch_revdeq.models import LanguageConfig, LanguageModel
from torch_revdeq.options.kept import OptionAttribute
from torch_revdeq.options.table import DEFAULTS

OTHERS: dict[str, Any] = {
    "beta": 0.6,
    "max_steps": 3,
    "check_every": 2,
    "state": torch.float32,
    "adjoint": "hooks",
    "rng": "shared",
    "check": 0.5,
    "accumulate": "autograd",
    "store_last": 2,
    "save_at": (1, 2),
    "backward_steps": 2,
    "pass_step": False,
    "tol": 1e-3,
}
"""Another value of options that need no second one."""


def test_every_option_is_an_attribute_that_reads_as_it_was_given() -> None:
    layer = RevDEQ(MLP())
    for name, default in DEFAULTS.items():
        if name != "compile":  # a method of every module
            assert getattr(layer, name) == default, name
        assert name in ("beta", "compile") or isinstance(getattr(RevDEQ, name), OptionAttribute)
    for name, value in OTHERS.items():
        layer = RevDEQ(MLP())
        setattr(layer, name, value)
        assert getattr(layer, name) == value == {"beta": layer.beta, **layer.options}[name]


def test_an_option_that_is_assigned_takes_effect() -> None:
    f, x = MLP(), inputs()
    layer = RevDEQ(f)
    layer.max_steps, layer.beta, layer.save_at = 3, 0.7, [1]
    got = layer.solve(x)
    want = solve(f, torch.zeros_like(x), x, max_steps=3, beta=0.7, save_at=[1])
    assert torch.equal(got.z, want.z) and got.stats.steps == 3
    assert torch.equal(got.saved[0], want.saved[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_steps", 0),
        ("check_every", nn.Linear(2, 2)),
        ("tol", "1e-3"),
        ("tol", nn.Parameter(torch.ones(()))),
        ("tol", torch.ones(())),
        ("state", "fp32"),
        ("beta", 1.0),
        ("beta", "0.5"),
        ("beta", nn.Linear(2, 2)),
        ("beta", nn.Linear),
        ("beta", [0.5] * 3),
        ("save_at", [9]),
        ("per_sample", True),
        ("memory_budget", 2**20),
        ("adjoint", "implicit"),
        ("residual_mask", "x"),
        ("residual_mask", torch.ones(6)),
        ("residual_mask", {"a": torch.ones(6, dtype=torch.bool), "b": 1}),
        ("residual_mask", nn.Linear(2, 2)),
    ],
)
def test_a_bad_value_is_refused_at_once_in_the_words_of_solve(name: str, value: Any) -> None:
    layer = RevDEQ(MLP())
    before = dict(layer.options), layer.beta, dict(layer._modules)
    with pytest.raises((ValueError, TypeError)) as said:
        setattr(layer, name, value)
    with pytest.raises((ValueError, TypeError)) as called:
        layer(inputs(), **{name: value})
    with pytest.raises((ValueError, TypeError)) as made:
        RevDEQ(MLP(), **{name: value})
    assert str(said.value) == str(made.value) and str(said.value).startswith(f"{name}: expected ")
    assert str(called.value) == str(made.value)
    assert before == (layer.options, layer.beta, layer._modules)


def test_options_that_need_each_other_are_set_together() -> None:
    layer = RevDEQ(MLP(), max_steps=30)
    with pytest.raises(ValueError, match="per_sample: expected a tol in addition"):
        layer.per_sample = True
    layer.set_solver(per_sample=True, tol=1e-2)
    with pytest.raises(ValueError, match="per_sample: expected a tol in addition"):
        layer.tol = None
    assert layer.tol == 1e-2 and layer.per_sample is True
    layer.set_solver(max_steps=3, beta=[0.5, 0.6, 0.7])  # neither fits the other's old value
    assert layer.beta == [0.5, 0.6, 0.7] and layer.max_steps == 3


# ---- a beta that is learned ----------------------------------------------------------------------


def test_beta_becomes_a_parameter_and_a_number_again() -> None:
    layer, x = RevDEQ(MLP(), max_steps=3), inputs()
    layer.beta = nn.Parameter(torch.tensor(0.6))
    assert "beta" in dict(layer.named_parameters()) and "beta" not in vars(layer)
    layer(x).sum().backward()
    assert layer.beta.grad is not None
    with pytest.raises(TypeError, match=r"beta: expected a number or a Parameter to replace"):
        layer.beta = torch.tensor(0.5)
    assert isinstance(layer.beta, nn.Parameter)
    set_solver(layer, beta=np.float32(0.25))
    assert layer.beta == 0.25 and type(layer.beta) is float
    assert "beta" not in layer.state_dict()
    del layer.beta
    layer.register_buffer("beta", torch.tensor(0.5))
    assert torch.equal(layer(x), RevDEQ(layer.f, max_steps=3)(x))
    layer.beta = 0.5
    assert "beta" not in layer.state_dict()


def test_a_parametrized_beta() -> None:
    class Inside(nn.Module):
        def forward(self, raw: Tensor) -> Tensor:
            return 0.1 + 0.8 * torch.sigmoid(raw)

    layer, x = RevDEQ(MLP(), beta=nn.Parameter(torch.zeros(())), max_steps=3), inputs()
    parametrize.register_parametrization(layer, "beta", Inside())
    layer.max_steps = 2
    layer(x).sum().backward()
    raw = layer.parametrizations["beta"].original
    assert layer.stats is not None and layer.stats.steps == 2 and raw.grad is not None
    with pytest.raises(TypeError, match=r"beta: expected a tensor because it is parametrized"):
        set_solver(layer, beta=0.5, max_steps=4)
    assert layer.max_steps == 2
    parametrize.remove_parametrizations(layer, "beta")
    layer.beta = 0.5
    assert torch.equal(layer(x), RevDEQ(layer.f, max_steps=2)(x))


# ---- copies and files ----------------------------------------------------------------------------


def _saved(layer: RevDEQ) -> RevDEQ:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), _saved],
    ids=["copy", "deepcopy", "pickle", "save"],
)
def test_a_copy_has_options_of_its_own(copied: Any) -> None:
    layer = RevDEQ(MLP(), max_steps=3, tol=1e-3)
    other = copied(layer)
    assert other.max_steps == 3 and other.tol == 1e-3
    other.max_steps, other.beta = 5, 0.7
    assert (other.max_steps, other.beta) == (5, 0.7)
    assert (layer.max_steps, layer.beta) == (3, 0.5)
    with pytest.raises(AttributeError, match="max_iter: "):
        other.max_iter = 3


# ---- one call ------------------------------------------------------------------------------------


def test_options_of_one_call() -> None:
    f, x = MLP(), inputs()
    layer = RevDEQ(f, max_steps=6, beta=0.7)
    want = solve(f, torch.zeros_like(x), x, max_steps=3, beta=0.4, save_at=[2], state="float32")
    got = layer.solve(x, max_steps=3, beta=0.4, save_at=[2], state="float32")
    assert torch.equal(got.z, want.z) and torch.equal(got.saved[0], want.saved[0])
    assert torch.equal(layer(x, max_steps=3, beta=0.4, state=torch.float32), want.z)
    assert layer.options == {"max_steps": 6} and layer.beta == 0.7
    layer(x)
    assert layer.stats is not None and layer.stats.steps == 6 and layer.stats.state == "exact"


def test_has_aux_of_one_call() -> None:
    def f(z: Tensor, x: Tensor, k: float = 1.0, step: int = 0) -> Any:
        new = torch.tanh(0.5 * k * z + x)
        return (new, new.mean() + step) if k == 1.0 else new

    layer, x = RevDEQ(f, max_steps=2), inputs()
    _, aux = layer(x, has_aux=True, aux="stack", pass_step=True)
    assert aux.shape == (4,) and aux[2] > 1
    layer.has_aux = True
    assert len(layer(x)) == 2
    assert torch.is_tensor(layer(x, has_aux=False, k=0.5))


def test_a_linear_cell_takes_options_of_one_call() -> None:
    layer, x = RevDEQ(LinearCell(8, 8), max_steps=4), torch.randn(3, 8)
    solution = layer.solve(x, max_steps=2, state="float32")
    assert solution.stats.steps == 2 and solution.stats.state == "float32"
    assert torch.equal(solution.z, RevDEQ(layer.f, max_steps=2, state=torch.float32)(x))


def test_a_name_that_is_an_option_and_a_parameter_of_f_is_refused() -> None:
    class Cell(MLP):
        def forward(self, z: Tensor, x: Tensor, state: Any = None, *, aux: float = 0.0) -> Tensor:
            shift = 0 if state is None else state
            return torch.tanh(super().forward(z, x) + shift + aux)

    f, x = Cell(), inputs()
    layer, shift = RevDEQ(f, max_steps=2), torch.randn(16)
    for keywords in ({"state": shift}, {"aux": 1.0}):
        (name,) = keywords
        with pytest.raises(TypeError, match=rf"^{name}: .*both; .*kwargs=.*set_solver\({name}="):
            layer(x, **keywords)
        want = solve(f, torch.zeros_like(x), x, max_steps=2, kwargs=keywords).z
        assert torch.equal(layer(x, kwargs=keywords), want)
    # Where f gets it by position, the keyword is the option.
    want = solve(f, torch.zeros_like(x), x, shift, max_steps=2, state=torch.float32).z
    assert torch.equal(layer(x, shift, state=torch.float32), want)
    with pytest.raises(TypeError, match="mask: expected once"):
        layer(x, mask=1, kwargs={"mask": 2})


def test_other_keywords_go_to_f() -> None:
    def f(z: Tensor, x: Tensor, **more: Any) -> Tensor:
        return torch.tanh(0.5 * z + x * more.get("gain", 1.0) * more.get("num_steps", 1))

    layer, x = RevDEQ(f, max_steps=2), inputs()
    want = solve(lambda z, x: f(z, x, gain=2.0), torch.zeros_like(x), x, max_steps=2).z
    assert torch.equal(layer(x, gain=2.0), want)
    with pytest.raises(TypeError, match=r"num_steps: .* pass max_steps=.*kwargs="):
        layer(x, num_steps=2)
    assert torch.equal(layer(x, kwargs={"num_steps": 2}), want)
    named = RevDEQ(lambda z, x, num_steps=1: f(z, x, gain=num_steps), max_steps=2)
    assert torch.equal(named(x, num_steps=2), want)


# ---- names of dtypes -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_dtype_and_its_name_are_the_same_state(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    given: list[Any] = [dtype, name, str(dtype)]
    if dtype != torch.bfloat16:
        given += [np.dtype(name), getattr(np, name)]
    config = partial(LanguageConfig, vocab_size=7, context=4, width=8, heads=2, steps=2)
    f, x = MLP(dtype=dtype), torch.randn(2, 16, dtype=dtype)
    for state in given:
        assert solve(f, x, max_steps=1, state=state).stats.state == name
        layer = RevDEQ(f, state=state)
        assert layer.state == dtype
        assert config(state=state) == config(state=dtype) and config(state=state).state == name
        assert LanguageModel(config(state=state)).equilibrium.state == dtype
    cell = LinearCell(4, 4).to(dtype)
    ends = [RevDEQ(cell, state=state).solve(torch.ones(2, 4, dtype=dtype)) for state in given]
    assert {end.stats.route for end in ends} == {ends[0].stats.route}
    assert all(torch.equal(end.z, ends[0].z) for end in ends)
