"""The options of a layer: attributes, for one call, for all layers of a model; other names."""

from __future__ import annotations

import copy
import io
import pickle
import re
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
from torch_revdeq.options.names import ELSEWHERE, NO_OPTION, meant
from torch_revdeq.options.table import DEFAULTS, TABLE

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
    with pytest.raises(ValueError, match="per_sample: expected with a tol"):
        layer.per_sample = True
    layer.set_solver(per_sample=True, tol=1e-2)
    with pytest.raises(ValueError, match="per_sample: expected with a tol"):
        layer.tol = None
    assert layer.tol == 1e-2 and layer.per_sample is True
    layer.set_solver(max_steps=3, beta=[0.5, 0.6, 0.7])  # neither fits the other's old value
    assert layer.beta == [0.5, 0.6, 0.7] and layer.max_steps == 3


# ---- other names ---------------------------------------------------------------------------------


SLIPS = ("max_step", "maxsteps", "betas", "states", "adjiont", "Tol", "Beta", "MAX_STEPS")


@pytest.mark.parametrize("name", [*ELSEWHERE, *SLIPS, "z0"])
def test_a_name_that_looks_like_an_option_names_it(name: str) -> None:
    layer, option = RevDEQ(MLP()), meant(name) or "the call"
    for use in (lambda: setattr(layer, name, 3), lambda: getattr(layer, name)):
        with pytest.raises(AttributeError, match=rf"^{name}: expected .*{option}"):
            use()
    assert not hasattr(layer, name) and name not in vars(layer)
    if name != "z0":
        with pytest.raises(TypeError, match=rf"^{name}: .* did you mean {option}\?"):
            RevDEQ(MLP(), **{name: 3})  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=rf"^{name}: expected .* pass {option}="):
            layer(inputs(), **{name: 3})
        with pytest.raises(TypeError, match=rf"^{name}: .* did you mean {option}\?"):
            solve(MLP(), inputs(), **{name: 3})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NO_OPTION)
def test_a_name_that_has_no_option_here_says_where_it_is(name: str) -> None:
    layer, place = RevDEQ(MLP()), re.escape(NO_OPTION[name])
    for use in (lambda: setattr(layer, name, 3), lambda: getattr(layer, name)):
        with pytest.raises(AttributeError, match=rf"^{name}: expected .*{place}"):
            use()
    calls: list[Any] = [RevDEQ, partial(solve, z0=inputs())]
    for call in calls:
        with pytest.raises(TypeError, match=rf"^{name}: expected an option.*; {place}"):
            call(MLP(), **{name: 3})
    with pytest.raises(TypeError, match=rf"^{name}: expected .* neither; {place}, or .*kwargs="):
        layer(inputs(), **{name: 3})


def test_a_parameter_of_f_may_have_any_name_that_is_no_option() -> None:
    def f(z: Tensor, x: Tensor, eps: float = 0.0, *, tau: float = 1.0, ift: bool = False) -> Tensor:
        return torch.tanh(tau * z + x + eps + ift)

    x = inputs()
    want = solve(f, torch.zeros_like(x), x, kwargs={"eps": 0.1, "tau": 0.5, "ift": True}).z
    assert torch.equal(RevDEQ(f)(x, eps=0.1, tau=0.5, ift=True), want)


def test_every_name_of_others_stands_for_an_option() -> None:
    assert {*ELSEWHERE.values()} <= {*TABLE}
    assert len({*ELSEWHERE, *NO_OPTION, *TABLE}) == len(ELSEWHERE) + len(NO_OPTION) + len(TABLE)


def test_ordinary_words_stay_free() -> None:
    layer = RevDEQ(MLP())
    for name in ("T", "memory", "store", "grad", "depth", "mask", "solver"):
        setattr(layer, name, 1)


def test_compile_is_the_method_of_modules() -> None:
    layer = RevDEQ(MLP())
    with pytest.raises(AttributeError, match=r"compile: expected by layer.set_solver\(compile=Tr"):
        layer.compile = True  # type: ignore[assignment]
    assert callable(layer.compile)
    layer.set_solver(compile="auto")
    assert layer.options["compile"] == "auto" and callable(layer.compile)


def test_other_attributes_are_as_free_as_in_any_module() -> None:
    class Mine(RevDEQ):
        max_iter = None
        check = staticmethod(lambda: "mine")

        def __init__(self, f: nn.Module) -> None:
            self.before = 1  # as a module allows
            super().__init__(f)
            self.max_iter = 7
            self.eta, self.stat, self.norm = 0.1, {}, nn.LayerNorm(16)
            self.z0 = nn.Parameter(torch.zeros(16))
            self.register_buffer("running", torch.zeros(2))

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            self.__dict__.setdefault("seen", []).append(name)

    layer, x = Mine(MLP()), inputs()
    assert layer.max_iter == 7 and layer.check() == "mine"
    layer.tol, layer.note = 1e-3, "free"
    layer.set_solver(check=False)  # the option, though the class has another attribute
    assert layer.options == {"tol": 1e-3, "check": False} and "tol" in layer.seen
    assert {"norm", "f"} == {*dict(layer.named_children())} and "z0" in layer._parameters
    layer(x).sum().backward()
    assert layer.stats is not None and layer.stats.reconstruction_error is None
    with pytest.raises(AttributeError, match="object has no attribute 'unheard'"):
        layer.unheard  # noqa: B018
    del layer.note
    layer.running = torch.ones(2)
    assert "running" in layer.state_dict()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_steps", 3),
        ("max_steps", property(lambda self: 3)),
        ("beta", 0.7),
        ("beta", lambda self, step: 0.5),
        ("tol", None),
        ("state", "float32"),
        ("on_step", lambda self, step, residual, z: None),
        ("check", property(lambda self: False)),
    ],
)
def test_a_class_attribute_that_would_hide_an_option_is_refused(name: str, value: Any) -> None:
    for bases in ((RevDEQ,), (type("Mixin", (), {name: value}), RevDEQ)):
        mine: Any = type("Mine", bases, {name: value} if len(bases) == 1 else {})
        with pytest.raises(TypeError, match=rf"^{name}: expected an option of Mine .*__init__"):
            mine(MLP())
    late: Any = type("Late", (RevDEQ,), {})
    assert late(MLP()).max_steps == 8
    setattr(late, name, value)
    with pytest.raises(TypeError, match=rf"^{name}: expected an option of Late "):
        late(MLP())


def test_a_subclass_gives_its_options_when_it_is_made() -> None:
    class Mine(RevDEQ):
        def __init__(self, f: nn.Module) -> None:
            super().__init__(f, max_steps=3)

    layer = Mine(MLP())
    layer(inputs())
    assert layer.stats is not None and layer.stats.steps == 3
    layer.max_steps = 2
    assert layer.solve(inputs()).stats.steps == 2


# ---- a beta that is learned ----------------------------------------------------------------------


def test_beta_becomes_a_parameter_and_a_number_again() -> None:
    layer, x = RevDEQ(MLP(), max_steps=3), inputs()
    layer.beta = nn.Parameter(torch.tensor(0.6))
    assert "beta" in dict(layer.named_parameters()) and "beta" not in vars(layer)
    layer(x).sum().backward()
    assert layer.beta.grad is not None
    with pytest.raises(TypeError, match=r"beta: expected a number or a Parameter in the place"):
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
    with pytest.raises(TypeError, match=r"beta: expected a tensor where it is parametrized"):
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


# ---- all layers of a model -----------------------------------------------------------------------


def test_set_solver_changes_every_layer_or_none() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Linear(4, 4), RevDEQ(MLP(4), max_steps=2))
            self.second = RevDEQ(MLP(4), save_at=[8], beta=nn.Parameter(torch.tensor(0.5)))

    model = Model()
    layers = [m for m in model.modules() if isinstance(m, RevDEQ)]
    for refused in ({"max_steps": 3}, {"tol": 1e-3}, {"beta": torch.tensor(0.5)}, {"max_iter": 3}):
        with pytest.raises((ValueError, TypeError), match=r"^(save_at|beta|max_iter): expected"):
            set_solver(model, **refused)
        assert [layer.max_steps for layer in layers] == [2, 8] and layers[0].beta == 0.5
    set_solver(model, max_steps=9, state="bfloat16")
    assert [(n.max_steps, n.state) for n in layers] == [(9, torch.bfloat16)] * 2
    set_solver(torch.compile(model), beta=0.6)  # type: ignore[arg-type]
    assert [layer.beta for layer in layers] == [0.6, 0.6]
    with pytest.raises(ValueError, match=r"model: expected a module with RevDEQ layers .*Linear"):
        set_solver(nn.Linear(2, 2), tol=1e-3)


def test_the_layer_sets_itself_and_no_layer_inside_of_it() -> None:
    inner = RevDEQ(MLP(), max_steps=2)
    outer = RevDEQ(inner.forward, max_steps=2)
    outer.inner = inner
    outer.set_solver(max_steps=3)
    assert (outer.max_steps, inner.max_steps) == (3, 2)
    set_solver(outer, max_steps=4)
    assert (outer.max_steps, inner.max_steps) == (4, 4)


def language_model(kind: type[LanguageModel] = LanguageModel) -> LanguageModel:
    return kind(LanguageConfig(vocab_size=7, context=4, width=8, heads=2, steps=2))


@pytest.mark.parametrize("name", [*TABLE, *ELSEWHERE, *SLIPS, *NO_OPTION])
def test_a_model_has_no_options_of_its_own(name: str) -> None:
    model, option = language_model(), name if name in TABLE else meant(name)
    said = rf"model\.set_solver\({option}=" if option else re.escape(NO_OPTION[name])
    if name != "compile":  # a method of every module
        for use in (lambda: setattr(model, name, 3), lambda: getattr(model, name)):
            with pytest.raises(AttributeError, match=rf"^{name}: .* of LanguageModel; {said}"):
                use()
        assert not hasattr(model, name)
    else:
        with pytest.raises(AttributeError, match=r"compile: .* model.set_solver\(compile=True"):
            model.compile = True  # type: ignore[assignment]
    assert name not in vars(model)


class MyModel(LanguageModel):
    tol = None  # the model's own

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__(config)
        self.tol, self.note = 7, "free"
        self.register_buffer("state", torch.zeros(2))
        self.beta = nn.Parameter(torch.zeros(2))
        self.state = torch.ones(2)

    def forward(self, tokens: Tensor) -> Tensor:
        self.seen = tokens.shape
        return super().forward(tokens)


def test_other_attributes_of_a_model_are_free() -> None:
    torch.compiler.reset()
    model, tokens = language_model(MyModel), torch.randint(7, (2, 4))
    assert isinstance(model, MyModel) and (model.tol, model.note) == (7, "free")
    assert model.state_dict()["state"].sum() == 2 and "beta" in dict(model.named_parameters())
    want = model(tokens)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(tokens), want) and other.tol == 7
        with pytest.raises(AttributeError, match=r"model\.set_solver\(max_steps="):
            other.max_iter = 3
    graph = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(graph(tokens), want) and model.seen == tokens.shape


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
