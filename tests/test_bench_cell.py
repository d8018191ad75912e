"""The benchmark of the equilibrium cell: its count of bytes, its gate, its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import revdeq_kernels as rk
from bench import cell

FEW = ["--quick", "--features", "32", "--steps", "2", "--device", "cpu"]
EAGERLY = ["--providers", "eager", "solver", "composite"]


def tensors(rows: int = 64, d: int = 32, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    u, w = (torch.randn(n, d, generator=generator) for n in (rows, d))
    return [u.to(dtype), (w * 0.4 / d**0.5).to(dtype), torch.zeros(rows, d)]


def test_bytes_are_those_of_the_tensors() -> None:
    """Of whole blocks of digits: the op reads and writes each of its tensors once, but for w."""
    u, w, z0 = tensors()
    y, z, fixed, digits, _ = rk.linear_cell_forward(u, w, z0, cell.BETA, 3, cell.ACT)
    forward = sum(t.nbytes for t in (u, z0, y, z, fixed, digits))
    assert cell.work("forward", u, z0, 3) == (forward, 3 * 2 * 2 * 64 * 32 * 32)
    end_y, end_z = fixed
    numbers = (cell.BETA, 3, cell.ACT)
    grads = rk.linear_cell_backward(y, z, end_y, end_z, digits, u, w, z0, *numbers)
    back = sum(t.nbytes for t in (y, z, fixed, digits, u, z0, grads[0], grads[2]))
    assert cell.work("train", u, z0, 3) == (forward + back, 4 * 3 * 2 * 2 * 64 * 32 * 32)


@pytest.mark.parametrize("part", cell.PARTS)
@pytest.mark.parametrize("dtype", cell.DTYPES.values())
def test_the_gate_lets_the_providers_pass_and_no_other(part: str, dtype: torch.dtype) -> None:
    given = tensors(dtype=dtype)
    for run in (cell.eager, cell.by_solver):
        assert cell.refusal(part, run, given, 8) is None

    def too_few(u: Tensor, w: Tensor, z0: Tensor, steps: int) -> cell.Pair:
        return cell.eager(u, w, z0, steps - 7)

    assert "off the composite's" in str(cell.refusal(part, too_few, given, 8))
    assert "ZeroDivisionError" in str(cell.refusal(part, lambda *_: 1 / 0, given, 8))  # type: ignore[return-value,arg-type]


def test_the_command_stores_and_draws(tmp_path: Path) -> None:
    arguments = [*FEW, *EAGERLY, "--rows", "32", "64", "--out", str(tmp_path)]
    assert cell.main(arguments) == 0
    records = [json.loads(line) for line in (tmp_path / "cell.jsonl").read_text().splitlines()]
    assert len(records) == 2 * 2 * 3
    for record in records:
        assert record["median_s"] > 0 and record["refused"] is None and record["commit"]
        by_bytes = record["bytes"] / record["copy_bytes_per_s"]
        by_operations = record["operations"] / record["matmul_flops"]
        assert record["roofline_s"] == max(by_bytes, by_operations) > 0
    assert (tmp_path / "cell.png").stat().st_size > 0


def test_a_refused_provider_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "refusal", lambda *_: "it is wrong")
    arguments = [*FEW, *EAGERLY, "--rows", "32", "--out", str(tmp_path)]
    assert cell.main(arguments) == 1
    lines = (tmp_path / "cell.jsonl").read_text().splitlines()
    assert {json.loads(line)["median_s"] for line in lines} == {None}
