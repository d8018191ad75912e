"""When the equilibrium cell's CPU kernel runs, and why it cannot."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, fx

import revdeq_kernels as rk
from revdeq_kernels import info
from revdeq_kernels.core import backends, libraries
from revdeq_kernels.ops.cell import choice
from tests.cell.linear_cells import ACTS, Cell, make, run
from tests.conftest import BACKENDS
from torch_revdeq import LinearCell, RevDEQ

if "cpu" not in BACKENDS:
    pytest.skip("the extension is not built", allow_module_level=True)

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU with AVX2, whatever this one has."""
    by(monkeypatch, "AVX2")


def by(monkeypatch: pytest.MonkeyPatch, instruction_set: str) -> None:
    monkeypatch.setattr(choice, "_cached_instruction_set", lambda: instruction_set)


def route(cell: LinearCell, **options: Any) -> str:
    """What takes a solve of the cell, and why."""
    layer = RevDEQ(cell, max_steps=2, **options)
    with torch.no_grad():
        layer(torch.zeros(3, cell.in_features, dtype=cell.W.dtype))
    assert layer.stats is not None
    return layer.stats.route


@pytest.mark.parametrize(
    ("instruction_set", "name"),
    [("AVX2", "cpu"), ("AVX-512", "cpu"), ("baseline", None), ("", None)],
)
def test_it_is_the_fastest_by_wide_instructions(
    instruction_set: str, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    by(monkeypatch, instruction_set)
    w = torch.zeros(5, 5)
    assert choice.fastest(w, "tanh") == name
    assert choice.choose(None, w, "tanh") == (name or "composite")
    expected = "cpu: it is the fastest here" if name else "solver: no kernel for all steps"
    assert route(LinearCell(4, 5)).startswith(expected)
    if instruction_set:  # the slowest runs too, where it is named
        assert choice.choose("cpu", w, "tanh") == "cpu"


def test_the_report_says_what_multiplies_bfloat16() -> None:
    """AMX only beside AVX-512; Linux may refuse it to a process."""
    found, widest = libraries.cpu_bfloat16_cell(), libraries.cpu_instruction_set()
    assert found == widest or (found, widest) == ("AMX", "AVX-512")
    assert re.search(f"cpu_bfloat16_cell +{found}$", info.report(), re.MULTILINE)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("d", [1, 33, 512])
def test_it_takes_any_number_of_features_up_to_512(d: int, dtype: torch.dtype, act: str) -> None:
    assert choice.fastest(torch.zeros(d, d, dtype=dtype), act) == "cpu"
    assert route(LinearCell(4, d, act, dtype=dtype)) == "cpu: it is the fastest here"


@pytest.mark.parametrize(
    ("w", "reason"),
    [
        (torch.zeros(513, 513), "it takes 1 to 512 features in torch.bfloat16, torch.float16 and "
         "torch.float32, got 513 in torch.float32; use 'composite'"),
        (torch.zeros(0, 0), "got 0 in torch.float32"),
        (torch.zeros(8, 8, dtype=F64), "got 8 in torch.float64"),
        (torch.zeros(8, 8, device="meta"), "its kernels require tensors on cpu, these are on meta"),
    ],
)  # fmt: skip
def test_what_it_does_not_take(w: Tensor, reason: str) -> None:
    assert reason in str(choice.why_not("cpu", w, "tanh"))
    assert choice.fastest(w, "tanh") is None
    with pytest.raises(ValueError, match=f"implementation 'cpu' cannot run: .*{reason}"):
        choice.choose("cpu", w, "tanh")


def test_more_features_go_to_the_solver_or_raise_where_it_was_named() -> None:
    cell = LinearCell(4, 513)
    assert route(cell).startswith("solver: no kernel for all steps is known to be faster for 513")
    with pytest.raises(ValueError, match="'cpu' cannot take this solve: it takes 1 to 512"):
        route(cell, implementation="cpu")
    with pytest.raises(ValueError, match="'cpu' cannot run: it takes 1 to 512 features"):
        by_op(make(2, 513, F32))


@pytest.mark.parametrize("missing", ["the extension", "the op"])
def test_without_its_code_the_composite_and_the_solver_run(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "the extension":
        monkeypatch.setitem(backends._missing, "cpu", "it was not built")
        monkeypatch.setattr(choice, "_cached_instruction_set", lambda: pytest.fail("it is absent"))
        reason = "it was not built"
    else:
        by(monkeypatch, "")
        reason = "it is newer than the compiled extension; rebuild that"
    cell = make(6, 8, F32)
    assert choice.choose(None, cell.w, "tanh") == "composite"
    for call in (lambda: run(cell, implementation="cpu"), lambda: by_op(cell)):
        with pytest.raises(ValueError, match=f"'cpu' cannot run: {reason}; use 'composite'"):
            call()
    with pytest.raises(ValueError, match=f"'cpu' cannot take this solve: {reason}"):
        route(LinearCell(4, 8), implementation="cpu")


def by_op(cell: Cell) -> Any:
    return torch.ops.revdeq_cpu.linear_cell_forward(*cell.tensors, *cell.numbers)


def test_another_backend_is_not_passed_by() -> None:
    w = torch.zeros(8, 8)
    with rk.backend("cpu"):
        assert choice.choose(None, w, "tanh") == "cpu"
        assert route(LinearCell(4, 8)) == "cpu: it is the fastest here"
    with rk.backend("reference"):
        assert choice.choose(None, w, "tanh") == "composite"
        assert route(LinearCell(4, 8)).startswith("solver: ")
        assert choice.choose("cpu", w, "tanh") == "cpu"


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile_chooses_the_same(dynamic: bool) -> None:
    """Also for as many features as it does not take, and under another backend."""
    torch._dynamo.reset()
    ops: list[str] = []

    def note(graph: fx.GraphModule, inputs: Any) -> Any:
        calls = (str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        ops.extend(target for target in calls if "linear_cell" in target)
        return graph.forward

    @torch.compile(fullgraph=True, backend=note, dynamic=dynamic)
    def z(u: Tensor, w: Tensor) -> Tensor:
        return rk.linear_cell_forward(u, w, torch.zeros_like(u), 0.5, 2)[1]

    z(torch.zeros(3, 8), torch.zeros(8, 8))
    z(torch.zeros(3, 513), torch.zeros(513, 513))
    with rk.backend("reference"):
        z(torch.zeros(3, 8), torch.zeros(8, 8))
    namespaces = [op.partition(".")[0] for op in ops]
    assert namespaces == ["revdeq_cpu", "revdeq", "revdeq"]
