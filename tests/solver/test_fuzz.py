"""Arbitrary solves: whatever is asked for, exact gradients have the bits of stored activations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torch_revdeq.testing import assert_exact_gradients

SHAPES = [(3,), (1,), (4, 6), (2, 3, 5), (0, 4), (33,)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BETAS = st.sampled_from([0.5, 0.6, 0.7312, 0.8, 0.9, 1.2, 1.5, 0.31])


class Mixed(nn.Module):
    """A map of several leaves of any shapes and dtypes, with parameters of its own."""

    def __init__(self, shapes: list[tuple[int, ...]], *, tied: bool, p: float) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(shape) for shape in shapes)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.drop = nn.Dropout(p)
        self.tied = tied

    def forward(self, z: list[Tensor], x: list[Tensor]) -> list[Tensor]:
        total = torch.stack([leaf.float().sum() for leaf in z]).sum().tanh()
        out = []
        for leaf, inject, weight in zip(z, x, self.weights, strict=True):
            h = torch.tanh(self.drop(leaf.float()) * weight + inject.float())
            if self.tied:
                h = h * self.scale + torch.sin(weight * leaf.float()) + leaf.float() * 0.25
            out.append((h * self.scale + 0.1 * total).to(leaf.dtype))
        return out


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    leaves = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3))
    steps = draw(st.integers(1, 6))
    tol = draw(st.sampled_from([None, 0.0, 0.3, 0.8]))
    per_sample = tol is not None and draw(st.booleans())
    if per_sample:
        samples = draw(st.sampled_from([1, 3, 8]))
        leaves = [(samples, *shape[1:]) for shape in leaves]
    return {
        "shapes": leaves,
        "dtypes": [draw(st.sampled_from(DTYPES)) for _ in leaves],
        "tied": draw(st.booleans()),
        "p": draw(st.sampled_from([0.0, 0.3])),
        "warm": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
        "options": {
            "adjoint": draw(st.sampled_from(["reversible", "hooks", "checkpoint"])),
            "beta": draw(st.one_of(BETAS, st.lists(BETAS, min_size=steps, max_size=steps))),
            "max_steps": steps,
            "tol": tol,
            "per_sample": per_sample,
            "check_every": draw(st.integers(1, 3)),
            "rng": draw(st.sampled_from(["auto", "shared"])),
            "frac_bits": draw(st.sampled_from(["auto", 12, 20])),
        },
    }


def check(problem: dict[str, Any]) -> None:
    torch.manual_seed(problem["seed"])
    f = Mixed(problem["shapes"], tied=problem["tied"], p=problem["p"])

    def leaves(scale: float) -> list[Tensor]:
        rows = zip(problem["shapes"], problem["dtypes"], strict=True)
        return [(scale * torch.randn(shape)).to(dtype).requires_grad_() for shape, dtype in rows]

    y0 = leaves(1.0) if problem["warm"] else None
    stats = assert_exact_gradients(f, leaves(1.0), leaves(0.5), y0=y0, **problem["options"])
    if problem["options"]["adjoint"] != "checkpoint" and any(
        map(torch.Size.numel, map(torch.Size, problem["shapes"]))
    ):
        assert stats.reconstruction_error == 0.0


@given(problems())
@settings(max_examples=60)
def test_any_solve(problem: dict[str, Any]) -> None:
    check(problem)


@pytest.mark.nightly
@given(problems())
@settings(max_examples=2000)
def test_any_solve_many_times(problem: dict[str, Any]) -> None:
    check(problem)
