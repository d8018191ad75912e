"""Options of all layers of a model at once, and names that only look like options."""

from __future__ import annotations

import argparse
import copy
import importlib
import inspect
import pickle
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.solver.cells import MLP
from tests.solver.solving import inputs
from torch_revdeq import RevDEQ, fixed_point, set_solver, solve
from torch_revdeq.limit.names import advice
from torch_revdeq.models import LanguageConfig, LanguageModel
from torch_revdeq.options.names import meant
from torch_revdeq.options.other_names import (
    ELSEWHERE,
    NO_OPTION,
    NOT_OF_FIXED_POINT,
    OF_FIXED_POINT,
    WORDS,
)
from torch_revdeq.options.table import TABLE

# ---- other names ---------------------------------------------------------------------------------


SLIPS = ("max_step", "maxsteps", "betas", "states", "adjiont", "Tol", "Beta", "MAX_STEPS")


@pytest.mark.parametrize("name", [*ELSEWHERE, *SLIPS, "z0"])
def test_a_name_that_looks_like_an_option_names_it(name: str) -> None:
    layer, option = RevDEQ(MLP()), meant(name) or "the layer.s call"
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


@pytest.mark.parametrize("name", WORDS)
def test_a_common_word_says_it_too_and_stays_free(name: str) -> None:
    layer, place = RevDEQ(MLP()), re.escape(WORDS[name])
    calls: list[Any] = [partial(RevDEQ, MLP()), partial(solve, MLP(), inputs())]
    for call in calls:
        with pytest.raises(TypeError, match=rf"^{name}: expected an option of solve; {place}"):
            call(**{name: 3})
    with pytest.raises(TypeError, match=rf"^{name}: expected .* neither; {place}, or .*kwargs="):
        layer(inputs(), **{name: 3})
    setattr(layer, name, 3)
    assert getattr(layer, name) == 3
    got: list[Any] = []

    def any_keyword(z: Tensor, x: Tensor, **more: Any) -> Tensor:
        got.append(more)
        return 0.5 * z + x

    RevDEQ(any_keyword)(inputs(), **{name: 3})
    assert got[0] == {name: 3}


@pytest.mark.parametrize("name", [*OF_FIXED_POINT, *NOT_OF_FIXED_POINT])
def test_fixed_point_names_its_own(name: str) -> None:
    hint = NOT_OF_FIXED_POINT.get(name) or f"did you mean {OF_FIXED_POINT[name]}?"
    said = rf"^{name}: expected an option of fixed_point; {re.escape(hint)}\.? The options are"
    with pytest.raises(TypeError, match=said):
        fixed_point(MLP(), inputs(), **{name: 3})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["implicit", "phantom"])
def test_an_adjoint_of_fixed_point_is_named_as_such(name: Any) -> None:
    call_it = re.escape(f"call torch_revdeq.fixed_point(f, z0, adjoint='{name}')")
    said = rf"^adjoint: expected one of .*, got '{name}'; {call_it}"
    for call in (partial(solve, MLP(), inputs()), partial(RevDEQ, MLP())):
        with pytest.raises(ValueError, match=said):
            call(adjoint=name)
    with pytest.raises(ValueError, match="got 'reversible'; the adjoints of the steps"):
        fixed_point(MLP(), inputs(), adjoint="reversible")  # type: ignore[arg-type]


def options_of_torchdeq() -> list[str]:
    """Every option of torchdeq's command line, and of its solvers."""
    torchdeq = pytest.importorskip("torchdeq", reason="torchdeq is not installed")
    parser = argparse.ArgumentParser(add_help=False)
    importlib.import_module("torchdeq.utils").add_deq_args(parser)
    names = [action.dest for action in parser._actions]
    for solver in ("anderson", "broyden", "fixed_point_iter"):
        rows = inspect.signature(torchdeq.get_deq(f_solver=solver).f_solver).parameters.values()
        names += [p.name for p in rows if p.default is not p.empty]
    return names


def test_every_option_of_torchdeq_has_advice() -> None:
    names = options_of_torchdeq()
    assert {"f_solver", "hook_ift", "LBFGS_thres", "lam", "eval_f_max_iter"} <= {*names}
    ours = [*inspect.signature(fixed_point).parameters]
    for name in names:
        assert name in TABLE or meant(name) or name in NO_OPTION or name in WORDS, name
        assert name in ours or advice(name, ours), name


def test_a_parameter_of_f_may_have_any_name_that_is_no_option() -> None:
    def f(z: Tensor, x: Tensor, eps: float = 0.0, *, tau: float = 1.0, ift: bool = False) -> Tensor:
        return torch.tanh(tau * z + x + eps + ift)

    x = inputs()
    want = solve(f, torch.zeros_like(x), x, kwargs={"eps": 0.1, "tau": 0.5, "ift": True}).z
    assert torch.equal(RevDEQ(f)(x, eps=0.1, tau=0.5, ift=True), want)


def test_every_name_of_others_stands_for_an_option() -> None:
    assert {*ELSEWHERE.values()} <= {*TABLE}
    tables = (ELSEWHERE, NO_OPTION, WORDS, TABLE)
    assert len({name for table in tables for name in table}) == sum(map(len, tables))
    assert not {*OF_FIXED_POINT} & {*NOT_OF_FIXED_POINT}


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
