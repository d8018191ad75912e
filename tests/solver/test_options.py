"""The table of options: what each takes, converts and refuses, before f runs, and its page."""

from __future__ import annotations

import inspect
import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore

from bench.show import options as page
from tests.project.documents import documents
from torch_revdeq import LinearCell, RevDEQ, graphed, solve
from torch_revdeq.adjoints.registry import ADJOINTS
from torch_revdeq.options.table import TABLE, reference

F32 = torch.float32
Z0 = torch.zeros(3, 4)
ELSEWHERE = {"y0", "kwargs"}
"""Keyword arguments of ``solve`` that are no options."""


def half(z: Tensor) -> Tensor:
    return 0.5 * z


def mean(z: Tensor) -> Tensor:
    return 0.5 * z + 0.5


def never(*_: Tensor) -> Tensor:
    raise AssertionError("f was evaluated")


# ---- the table -----------------------------------------------------------------------------------


def test_the_table_is_the_signature() -> None:
    parameters = inspect.signature(solve).parameters.values()
    given = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for name in ELSEWHERE:
        del given[name]
    assert given == {name: option.default for name, option in TABLE.items()}
    assert {name: type(value) for name, value in given.items()} == {
        name: type(option.default) for name, option in TABLE.items()
    }


def test_the_page_has_the_table() -> None:
    """In the order of the solver's own table, with what `help(solve)` says of each."""
    text = documents()["docs/api/solver.md"].text
    assert page.table() in text
    said = " ".join((solve.__doc__ or "").split())
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", text, re.MULTILINE)
    assert [name for name, _, _ in rows] == [*TABLE]
    for name, meaning, kind in rows:
        assert f"{name}: {meaning}" in said
        assert kind == TABLE[name].kind
    assert reference().count("\n") == len(TABLE) + 1


def test_an_option_without_a_docstring_has_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (solve.__doc__ or "").replace("        rng: whether", "        whether")
    monkeypatch.setattr(solve, "__doc__", text)
    with pytest.raises(ValueError, match=r"expected `rng` under Args in its docstring"):
        page.table()


OTHERS: dict[str, dict[str, Any]] = {
    "beta": {"beta": 0.4},
    "max_steps": {"max_steps": 3},
    "tol": {"tol": 1e-3},
    "check_every": {"check_every": 2},
    "per_sample": {"tol": 1e-3, "per_sample": True},
    "process_group": {"tol": 1e-3},
    "residual_mask": {"residual_mask": torch.ones(3, dtype=torch.bool)},
    "state": {"state": torch.float64},
    "frac_bits": {"frac_bits": 12, "state": "exact"},
    "adjoint": {},
    "rng": {"rng": "shared"},
    "check": {"check": 0.5},
    "accumulate": {"accumulate": "autograd"},
    "store_last": {"store_last": 1},
    "memory_budget": {"store_last": "auto", "memory_budget": 2**20},
    "save_at": {"save_at": [1]},
    "backward_steps": {"backward_steps": 1},
    "has_aux": {"has_aux": True},
    "aux": {"has_aux": True, "aux": "mean"},
    "pass_step": {"pass_step": True},
    "compile": {"compile": "auto"},
    "trace": {"trace": True},
    "on_step": {"on_step": lambda step, residual, z: None},
}
"""For every option another value than its default, with what it needs beside it."""


@pytest.fixture(scope="module")
def group() -> Any:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("name", TABLE)
def test_the_adjoints_of_an_option(name: str, adjoint: Any, group: Any) -> None:
    z0, w = torch.randn(3, 4), torch.ones(4, requires_grad=True)
    options: dict[str, Any] = {"state": F32, "max_steps": 2, "adjoint": adjoint, **OTHERS[name]}
    if name == "process_group":
        options["process_group"] = group
    if not TABLE[name].limited or name in ADJOINTS[adjoint].takes:

        def f(z: Tensor, w: Tensor, step: int | None = None) -> Any:
            assert (step is None) == (name != "pass_step")
            new = torch.tanh(w * z)
            return (new, new.mean()) if "has_aux" in options else new

        solve(f, z0, w, **options).z.sum().backward()
        assert w.grad is not None and w.grad.isfinite().all()
        return
    for make in (lambda: solve(never, z0, **options), lambda: RevDEQ(never, **options)(z0)):
        with pytest.raises(ValueError, match=rf"adjoint='{adjoint}', got .*; choose"):
            make()


# ---- values --------------------------------------------------------------------------------------

NAN = float("nan")
UNFIT: list[tuple[str, Any]] = [
    *[("beta", v) for v in ("0.5", b"1", None, True, iter([0.5] * 8), {0.5}, {0: 0.5}, object())],
    ("beta", torch.ones(2, dtype=torch.int64)),
    *[("max_steps", v) for v in (0, -1, 2.5, 8.0, "8", None, True, np.True_, torch.tensor(3))],
    *[("tol", v) for v in ("1e-3", True, -1.0, NAN, [1e-3], np.array([1e-3]), torch.tensor(1e-3))],
    *[("check_every", v) for v in (0, 1.0, "1", None, True, torch.tensor(1))],
    *[("per_sample", v) for v in ("no", 0, 0.0, 1.0, -1, None, torch.tensor([True, False]))],
    *[("process_group", v) for v in ("gloo", 0, object(), True)],
    *[("state", v) for v in ("fp32", "int32", float, np.int32, None, True, torch.int32, [])],
    *[("frac_bits", v) for v in (-1, 31, 20.0, "20", None, True, torch.tensor(20))],
    *[("adjoint", v) for v in (None, "implicit", ["reversible"], {"hooks"}, True, 0)],
    *[("rng", v) for v in (None, True, "torch", ["auto"], 0)],
    *[("check", v) for v in ("yes", "no", None, -1.0, NAN, 0, 0.0, 1, [], torch.tensor(True))],
    *[("accumulate", v) for v in (None, F32, "fp32", ["float32"])],
    *[("store_last", v) for v in (None, "all", -1, True, 1.0, torch.tensor(1))],
    *[("memory_budget", v) for v in (-1, 0.5, "1 MiB", True, 1e6, torch.tensor(1))],
    *[("save_at", v) for v in (3, "12", None, [0], [1.0], [True], ["1"], {1, 2}, iter([1]))],
    *[("save_at", v) for v in (torch.tensor([1, 2]), [torch.tensor(1)], np.array([1.5]))],
    *[
        (n, v)
        for n in ("has_aux", "pass_step", "trace")
        for v in ("yes", 1, 0, None, torch.ones(()))
    ],
    *[("on_step", v) for v in ("print", True, 1, [print], torch.ones(()))],
    *[("aux", v) for v in (None, "max", True, ["sum"])],
    *[("backward_steps", v) for v in (0, -1, "2", 1.0, True, torch.tensor(2))],
]
"""What an option does not take, in the words of its row in the table."""

CONTRACTS, NUMBERS = "expected a number inside (0, 2) other than 1", "expected numbers, got "
OF_OTHERS: list[tuple[str, Any, type[Exception], str]] = [
    *[("beta", v, ValueError, f"{CONTRACTS}, got") for v in (1.0, 2.0, 0.0, -1, NAN)],
    ("beta", [0.5] * 7 + [1.0], ValueError, f"{CONTRACTS} in step 7, got 1"),
    ("beta", [0.5], ValueError, "expected one value for each of max_steps=8 steps, got 1"),
    ("beta", ["0.5"] * 8, TypeError, f"{NUMBERS}str"),
    ("beta", [torch.ones(())] * 8, TypeError, f"{NUMBERS}Tensor"),
    ("beta", np.full((8, 1), 0.5), TypeError, f"{NUMBERS}list"),
    ("save_at", [9], ValueError, "expected integers of 1 to max_steps=8, got 9"),
    ("save_at", [1, 1], ValueError, "expected each step once, got [1, 1]"),
]
"""What it takes by its kind, and cannot use: the words are those of this value."""
BESIDE = {
    "per_sample": {"tol": 1e-3},
    "process_group": {"tol": 1e-3},
    "frac_bits": {"state": "exact"},
    "memory_budget": {"store_last": "auto"},
}
REFUSED = [
    *[(n, v, TABLE[n].error, f"expected {TABLE[n].expected}, got ") for n, v in UNFIT],
    *OF_OTHERS,
]


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    REFUSED,
    ids=[re.sub(r"0x\w+|\W+", "_", f"{n} {v}")[:40] for n, v, *_ in REFUSED],
)
def test_a_bad_value_is_refused_by_name_before_f_runs(
    name: str, value: Any, error: type[Exception], words: str
) -> None:
    options = {**BESIDE.get(name, {}), name: value}
    calls = [
        lambda: solve(never, Z0, **options),
        lambda: RevDEQ(never, **options),
        lambda: RevDEQ(LinearCell(4, 4), **options),
    ]
    said = set()
    for call in calls:
        with pytest.raises(error) as raised:
            call()
        said.add(str(raised.value))
    assert len(said) == 1
    text = said.pop()
    assert text.startswith(f"{name}: {words}") and re.search("got .+; .+", text), text
    assert "\n" not in text and len(text) < 400


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("state", "fp32", "state=torch.float32 or state='float32'"),
        ("state", float, "torch.float64"),
        ("tol", torch.tensor(1e-3), "pass float(tol)"),
        ("max_steps", torch.tensor(3), "pass int(max_steps)"),
        ("check", 0, "False compares nothing"),
        ("save_at", None, "() saves none"),
        ("process_group", "gloo", "torch.distributed.group.WORLD"),
    ],
)
def test_the_way_out(name: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        solve(never, Z0, **{**BESIDE.get(name, {}), name: value})


@pytest.mark.parametrize("value", [2.5, "3", 0, True, None, torch.tensor(2), lambda: 2])
def test_a_function_that_returns_no_depth(value: Any) -> None:
    layer = RevDEQ(never, max_steps=lambda: value)
    for call in (lambda: solve(never, Z0, max_steps=lambda: value), lambda: layer(Z0)):
        with pytest.raises(ValueError, match=r"max_steps: expected .* from the function, got .*; "):
            call()


def test_numbers_of_other_libraries_are_converted() -> None:
    z0 = torch.randn(3, 4)
    integers: dict[str, Any] = {
        name: np.int64(3) for name in ("max_steps", "check_every", "backward_steps")
    }
    integers |= {"save_at": np.array([1, 3]), "frac_bits": np.uint8(18), "store_last": np.int32(2)}
    plain: dict[str, Any] = {"max_steps": 3, "check_every": 3, "backward_steps": 3}
    plain |= {"save_at": [1, 3], "frac_bits": 18, "store_last": 2}
    got, want = (solve(torch.tanh, z0, **options) for options in (integers, plain))
    assert torch.equal(got.z, want.z) and all(map(torch.equal, got.saved, want.saved))
    assert type(got.stats.steps) is int and got.stats.frac_bits == 18
    reals: dict[str, Any] = {"beta": np.float32(0.3), "tol": np.float64(1e-2), "check": np.False_}
    plain = {"beta": float(np.float32(0.3)), "tol": 1e-2, "check": False}
    got, want = (solve(mean, z0, max_steps=40, **options) for options in (reals, plain))
    assert torch.equal(got.z, want.z) and got.stats.steps == want.stats.steps < 40
    assert type(got.stats.tol) is float
    drawn: list[Any] = [lambda: np.int64(3), lambda: 3]
    assert [solve(half, z0, max_steps=depth).stats.steps for depth in drawn] == [3, 3]
    betas: list[Any] = [np.array([0.3, 0.5]), (0.3, np.float64(0.5)), [Fraction(3, 10), 0.5]]
    betas.append(lambda n: np.float64(0.3 + 0.2 * n))
    ends = [solve(half, z0, beta=beta, max_steps=2).z for beta in betas]
    assert all(torch.equal(end, ends[0]) for end in ends)


def test_check_is_a_bool_or_a_tolerance() -> None:
    """np.False_ compares nothing, np.True_ does; a number is a tolerance, however it is written."""

    def run(check: Any) -> float | None:
        z0 = torch.randn(3, 4, requires_grad=True)
        solution = solve(torch.tanh, z0, state=F32, check=check)
        solution.z.sum().backward()
        return solution.stats.reconstruction_error

    assert run(False) is None and run(np.False_) is None
    for check in (True, np.True_, 0.5, np.float32(0.5), 2, math.inf):
        error = run(check)
        assert error is not None and error < 1e-3


def test_none_and_zero_and_empty_are_what_they_were() -> None:
    options: dict[str, Any]
    for options in ({"tol": 0}, {"tol": 0.0}, {"tol": None}, {"save_at": []}, {"store_last": 0}):
        assert solve(half, Z0, **options).stats.steps == 8
    zeros: list[Any] = [0, 0.0, np.float32(0.0)]
    for tol in zeros:  # where only None is taken
        assert solve(half, Z0, tol=tol, adjoint="functional", state=F32).stats.tol is None
        assert len(solve(half, Z0, tol=tol, save_at=[3]).saved) == 1


# ---- among each other ----------------------------------------------------------------------------

UNUSED = dist.ProcessGroup(HashStore(), 0, 1)
TOGETHER = [
    ("per_sample: expected a tol in addition.*pass the residual", {"per_sample": True}),
    ("per_sample: expected a tol in addition", {"per_sample": 2}),
    ("process_group: expected a tol in addition", {"process_group": UNUSED}),
    ("memory_budget: expected bytes", {"store_last": "auto"}),
    ("memory_budget: expected bytes", {"memory_budget": 1}),
    ("save_at: expected no tol in addition", {"save_at": [1], "tol": 0.1}),
    ("backward_steps: expected no tol in addition", {"backward_steps": 1, "tol": 0.1}),
    ("frac_bits: expected 'auto' for a float", {"frac_bits": 8, "state": F32}),
    ("save_at: expected integers of 1 to max_steps=3", {"save_at": [1, 4], "max_steps": 3}),
    ("beta: expected one value for each", {"beta": [0.5] * 3, "max_steps": 4}),
    ("beta: .*1/256 .*, got 0.999; choose at most 0.996", {"beta": 0.999, "state": "exact"}),
    ("tol: expected None with", {"tol": 1e-3, "adjoint": "functional", "state": F32}),
    ("store_last: expected 0 with .*'reversible'", {"store_last": 1, "adjoint": "hooks"}),
]


@pytest.mark.parametrize(("message", "options"), TOGETHER)
def test_options_that_do_not_go_together(message: str, options: dict[str, Any]) -> None:
    for make in (lambda: solve(never, Z0, **options), lambda: RevDEQ(never, **options)):
        with pytest.raises(ValueError, match=message):
            make()


def test_a_layer_asks_for_no_more_than_it_can_know() -> None:
    """A tensor as beta is not read: it may be on the meta device. A function is not called."""
    RevDEQ(half, max_steps=lambda: pytest.fail("called"), beta=lambda n: pytest.fail("called"))
    with torch.device("meta"):
        RevDEQ(half, beta=nn.Parameter(torch.empty(())), state="exact")
    RevDEQ(half, frac_bits=12)  # z0 may be in float64, or not
    with pytest.raises(TypeError, match=r"fractional_bits: expected an option of solve; did you"):
        RevDEQ(half, fractional_bits=12)


def test_options_that_a_layer_is_given_later() -> None:
    layer = RevDEQ(half)
    layer.options["tol"] = "1e-3"
    with pytest.raises(ValueError, match="tol: expected a number"):
        layer(Z0)
    with pytest.raises(ValueError, match="tol: expected a number"):
        graphed(layer, Z0)


def test_the_compiler_is_told_the_same() -> None:
    cell = LinearCell(4, 4)
    torch.compiler.reset()

    class Model(nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.cell, self.options = cell, options

        def forward(self, x: Tensor) -> Tensor:
            return solve(self.cell, torch.zeros_like(x), x, **self.options).z

    functional = {"adjoint": "functional", "rng": "none", "state": F32}
    for options in ({"save_at": 3}, {"check": "yes"}, {"check": "yes", **functional}):
        name = next(iter(options))
        compiled = torch.compile(Model(**options), backend="eager", fullgraph=True)
        with pytest.raises(Exception, match=f"{name}: expected "):  # the compiler's, around ours
            compiled(Z0)


def test_a_layer_keeps_what_compilers_take() -> None:
    given: dict[str, Any] = {
        "beta": np.float32(0.4),
        "max_steps": np.int64(3),
        "tol": np.float64(0.5),
    }
    given |= {"per_sample": np.True_, "check": np.False_}
    cell, x = LinearCell(4, 4), torch.randn(3, 4)
    layer = RevDEQ(cell, **given)
    assert layer.options == {"max_steps": 3, "tol": 0.5, "per_sample": 1, "check": False}
    assert {type(value) for value in (layer.beta, *layer.options.values())} == {bool, int, float}
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))
    layer = RevDEQ(cell, beta=np.full(2, 0.4), max_steps=2, save_at=np.array([1]))
    assert layer.beta == [0.4, 0.4] and layer.options["save_at"] == (1,)
    assert RevDEQ(cell, per_sample=True, tol=0.1).options["per_sample"] is True
