"""The benchmark of the equilibrium cell: its count of bytes, its gate, its files."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import revdeq_kernels as rk
from bench import __main__ as command
from bench import arguments
from bench.cell import issue, methods
from bench.cell import measure as cell
from bench.core.ceilings import Ceilings

FEW = ["--quick", "--only", "cell", "--features", "32", "--depths", "2", "--device", "cpu"]
EAGERLY = ["--providers", "eager", "solve", "composite"]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def tensors(rows: int = 64, d: int = 32, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    u, w = (torch.randn(n, d, generator=generator) for n in (rows, d))
    return [u.to(dtype), (w * 0.4 / d**0.5).to(dtype), torch.zeros(rows, d)]


def test_bytes_are_those_of_the_tensors() -> None:
    """Of whole blocks of digits: the op reads and writes each of its tensors once, but for w."""
    u, w, z0 = tensors()
    out = rk.linear_cell_forward(u, w, z0, methods.BETA, 3, methods.ACT)
    y, z, fixed, digits = out[:4]
    forward = sum(t.nbytes for t in (u, z0, y, z, fixed, digits))
    assert cell.work("forward", u, z0, 3) == (forward, 3 * 2 * 2 * 64 * 32 * 32)
    end_y, end_z = fixed
    numbers = (methods.BETA, 3, methods.ACT)
    grads = rk.linear_cell_backward(y, z, end_y, end_z, digits, u, w, z0, *numbers)
    back = sum(t.nbytes for t in (y, z, fixed, digits, u, z0, grads[0], grads[2]))
    assert cell.work("train", u, z0, 3) == (forward + back, 4 * 3 * 2 * 2 * 64 * 32 * 32)


@pytest.mark.parametrize("part", cell.PARTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gate_lets_the_providers_pass_and_no_other(part: str, dtype: torch.dtype) -> None:
    given = tensors(dtype=dtype)
    for run in (methods.eager, methods.by_solver):
        assert methods.refusal(part, run, given, 8) is None

    def too_few(u: Tensor, w: Tensor, z0: Tensor, steps: int) -> methods.Pair:
        return methods.eager(u, w, z0, steps - 7)

    assert "off the composite's" in str(methods.refusal(part, too_few, given, 8))
    assert "ZeroDivisionError" in str(methods.refusal(part, lambda *_: 1 / 0, given, 8))  # type: ignore[return-value,arg-type]


def test_the_command_stores_and_draws(tmp_path: Path) -> None:
    arguments = [*FEW, *EAGERLY, "--rows", "32", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    records = [json.loads(line) for line in (tmp_path / "cell.jsonl").read_text().splitlines()]
    assert len(records) == 2 * 3
    for record in records:
        assert record["p50_seconds"] > 0 and record["refused"] is None and record["commit"]
        share = record["roofline_seconds"] / record["p50_seconds"]
        assert record["share_of_roofline"] == share > 0
    assert (tmp_path / "cell.png").stat().st_size > 0


def test_the_roofline_is_the_slower_of_bytes_and_operations() -> None:
    limits = Ceilings(copy=100.0, matmul={"bfloat16": 10.0})
    assert cell.floor(300, 20, torch.bfloat16, limits) == 3.0
    assert cell.floor(300, 40, torch.bfloat16, limits) == 4.0


def test_the_issue_bound_is_that_of_the_recorded_instructions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """2^20 elements and 8 half steps, by 128 lanes of 100 processors at 1 GHz."""
    counts = {"forward": 25.0, "back": 40.0}
    kernels = {
        f"triton cell {way} bf16 64 act 0 form 0 digits 8": {"sm_90": {"instructions": count}}
        for way, count in counts.items()
    }
    monkeypatch.setattr(issue, "_kernels", lambda: kernels)
    monkeypatch.setattr(cell.machine, "most_clocks", lambda device: 1e9)
    monkeypatch.setattr(cell.first_use, "architecture", lambda device: "sm_90")
    properties = SimpleNamespace(multi_processor_count=100)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    gpu = torch.device("cuda", 0)
    for part, instructions in (("forward", 25.0), ("train", 65.0)):
        size = cell.Size(part, 64, 2**14, 4)
        got = cell.issue_bound(size, "triton", gpu)
        assert got == pytest.approx(instructions * 2**20 * 8 / (128 * 100 * 1e9))
        assert cell.issue_bound(size, "solve", gpu) is None
    monkeypatch.setattr(cell.machine, "most_clocks", lambda device: None)
    assert cell.issue_bound(size, "triton", gpu) is None
    line = {"issue_seconds": 1e-3, "share_of_issue": 0.25}
    assert cell.issued(line) == "1 ms, 25.0%" and cell.issued({}) == ""


@pytest.mark.parametrize(
    ("implementation", "features"), [*product(("triton", "gluon"), cell.FEATURES)]
)
def test_the_record_has_what_the_benchmark_measures(implementation: str, features: int) -> None:
    for part in cell.PARTS:
        assert issue.per_element(implementation, part, features, "sm_90")


def test_a_refused_provider_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "refusal", lambda *_: "it is wrong")
    run = arguments.session(arguments.parse([*FEW, *EAGERLY]), FEW)
    limits = Ceilings(copy=1.0, matmul={"bfloat16": 1.0})
    lines = list(cell.measure(cell.Size("forward", 32, 32, 2), run, limits))
    assert [line["refused"] for line in lines] == ["it is wrong"] * 3
    assert not any("p50_seconds" in line for line in lines)
