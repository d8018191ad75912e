"""Every cell of docs/composes.md: what it says is so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import Unsupported

from tests import ROOT
from tests.solver.cells import MLP
from tests.solver.composing import ALONE, BOUND, BOUNDS, FEATURES, GRAPHED, Auxiliary, Feature
from tests.solver.surroundings import AROUND
from torch_revdeq import solve

DOCUMENT = (ROOT / "docs/composes.md").read_text()


def cells(heading: str) -> Iterator[tuple[str, str, str]]:
    """Row, column and content of a table of the document."""
    section = DOCUMENT.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    columns = table[0][1:]
    for row, *contents in table[2:]:
        yield from ((row, c, content) for c, content in zip(columns, contents, strict=True))


ROWS = FEATURES | AROUND
ADJOINTS = list(cells("With which adjoint"))
OPTIONS = [cell for cell in cells("Options among each other") if cell[2]]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()


# ---- adjoints ------------------------------------------------------------------------------------


def seeded(run: Feature, adjoint: str) -> list[Tensor]:
    torch.manual_seed(0)
    return run(adjoint)


@pytest.mark.parametrize(
    ("row", "adjoint", "content"), ADJOINTS, ids=[f"{row}-{column}" for row, column, _ in ADJOINTS]
)
def test_adjoints(row: str, adjoint: str, content: str) -> None:
    if content == "refused":
        with pytest.raises((ValueError, TypeError, RuntimeError), match=EXPLAINS):
            seeded(ROWS[row], adjoint)
        return
    assert content == "yes"
    others = [column for r, column, c in ADJOINTS if r == row and c == "yes" and column != adjoint]
    got = seeded(ROWS[row], adjoint)
    want = seeded(ROWS[row], others[0]) if others else seeded(ALONE[row], adjoint)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        distance = (a.double() - b.double()).norm()
        assert distance <= BOUNDS.get(row, BOUND) * b.double().norm()


EXPLAINS = "expected .*(choose|pass|put|give)|mutate a captured Tensor"
"""An error of ours says what to do; the other one is torch.func's."""

# ---- options -------------------------------------------------------------------------------------

CHOICES: dict[str, dict[str, Any]] = {
    "has_aux": {"has_aux": True},
    "tol": {"tol": 0.3, "max_steps": 4},
    "per_sample": {"per_sample": True, "tol": 0.3, "max_steps": 4},
    "per_sample=2": {"per_sample": 2, "tol": 0.3, "max_steps": 4},
    "residual_mask": {"residual_mask": torch.arange(6) < 4},
    "save_at": {"save_at": [1, 2]},
    "backward_steps": {"backward_steps": 1},
    "store_last": {"store_last": 2},
    "trace": {"trace": True},
    "on_step": {"on_step": lambda step, residual, z: None},
    "random depth": {"max_steps": lambda: int(torch.randint(2, 4, ()))},
    "learned beta": {},
    "dropout": {},
    "autocast": {},
    "compiled f": {},
    "fullgraph": {},
    "CUDA graph": {},
}


def combined(names: tuple[str, str], *, defined: bool) -> list[Tensor]:
    """z, y, what was saved and all gradients, with two choices; or as they are defined."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"max_steps": 3, "state": "exact", "beta": 0.4}
    for name in names:
        options |= CHOICES[name]
    if defined:
        options |= {"adjoint": "backprop", "store_last": 0}
    kind = Auxiliary if "has_aux" in names else MLP
    f, x = kind(p=0.3 if "dropout" in names else 0.0), torch.randn(6, 16, requires_grad=True)
    tensors = [x, *f.parameters()]
    if "learned beta" in names:
        options["beta"] = torch.tensor(0.4, requires_grad=True)
        tensors.append(options["beta"])
    if "compiled f" in names and not defined:
        f.compile(backend="aot_eager")

    def run(x: Tensor) -> list[Tensor]:
        solution = solve(f, torch.zeros_like(x), x, **options)
        aux = [] if solution.aux is None else list(solution.aux.values())
        return [solution.z, solution.y, *solution.saved, *aux]

    if "fullgraph" in names and not defined:
        run = torch.compile(run, backend="aot_eager", fullgraph=True)
    autocast = torch.autocast("cpu", torch.bfloat16) if "autocast" in names else nullcontext()
    torch.manual_seed(1)
    with autocast:
        outputs = run(x)
    loss = torch.stack([t.square().sum() for t in outputs]).sum()
    return [*outputs, *torch.autograd.grad(loss, tensors)]


@pytest.mark.parametrize(
    ("row", "column", "content"), OPTIONS, ids=[f"{row}-{column}" for row, column, _ in OPTIONS]
)
def test_options(row: str, column: str, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if content == "gpu":
        assert column == "CUDA graph" and row in GRAPHED
        pytest.skip("needs a GPU: tests/solver/test_cuda.py::test_options_in_a_graph has it")
    if column == "CUDA graph":
        solver = sys.modules["torch_revdeq.solver"]  # the name is that of a function too
        monkeypatch.setattr(solver, "capturing", lambda device: True)
        monkeypatch.setitem(CHOICES, column, {"frac_bits": 18, "rng": "none"})
        if row == "dropout":  # it needs its random numbers
            monkeypatch.setitem(CHOICES, column, {"frac_bits": 18})
    if content == "refused":
        error = Unsupported if column == "fullgraph" else ValueError
        with pytest.raises(error, match=EXPLAINS + "|cannot depend|the capture"):
            combined((row, column), defined=False)
        return
    assert content == "yes"
    got, want = (combined((row, column), defined=defined) for defined in (False, True))
    assert len(got) == len(want)
    assert all(map(torch.equal, got, want))


def test_every_choice_has_a_row_or_a_column() -> None:
    assert {row for row, *_ in ADJOINTS} == set(ROWS)
    assert {name for row, column, _ in OPTIONS for name in (row, column)} == set(CHOICES)
