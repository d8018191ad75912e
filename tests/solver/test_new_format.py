"""A format that is not among those of the library: a file and a row, and every adjoint keeps it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from torch_revdeq import solve
from torch_revdeq.state.floating import FLOAT_STATES, FloatPair
from torch_revdeq.state.formats import FORMATS, Format, Start


class RoundedPair(FloatPair):
    """float32 whose updates keep the 8 bits of bfloat16."""

    def _call(
        self, op: str, group: Any, state: Any, n: int, second: int, f: Any, cast: Any
    ) -> None:
        super()._call(op, group, state, n, second, f, cast)
        for leaf in (state, cast) if op == "update" else ():
            if leaf is not None:
                leaf.copy_(leaf.bfloat16())


class Rounded(Format):
    name, stored, takes_f = "rounded", torch.float32, FLOAT_STATES[torch.float32]

    def begin(self, start: Start) -> RoundedPair:
        y0 = start.z0 if start.y0 is None else start.y0
        pair = RoundedPair.begin(y0, start.z0, start.layout, start.schedule)
        assert isinstance(pair, RoundedPair)
        return pair


@pytest.fixture(autouse=True)
def _row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "rounded", Rounded())


def f(z: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(0.3 * z + x)


def test_values_are_those_of_the_format_with_every_adjoint() -> None:
    x = torch.randn(9, generator=torch.Generator().manual_seed(0), requires_grad=True)
    options: dict[str, Any] = {"max_steps": 5, "state": "rounded", "check": False}
    y = z = torch.zeros(9)
    for _ in range(options["max_steps"]):
        y = (0.5 * y + 0.5 * f(z, x.detach())).bfloat16().float()
        z = (0.5 * z + 0.5 * f(y, x.detach())).bfloat16().float()
    for adjoint in ("reversible", "hooks", "backprop", "checkpoint"):
        solution = solve(f, torch.zeros(9), x, adjoint=adjoint, **options)
        assert torch.equal(solution.z, z), adjoint
        (gradient,) = torch.autograd.grad(solution.z.sum(), x)
        assert gradient.min() > 0 and gradient.max() < 2, adjoint


def test_an_adjoint_with_steps_of_its_own_refuses_it() -> None:
    options: dict[str, Any] = {"max_steps": 2, "state": "rounded", "adjoint": "functional"}
    with pytest.raises(ValueError, match=r"state: expected torch\.float32 or .*, got rounded"):
        solve(f, torch.zeros(9), torch.ones(9, requires_grad=True), **options)


def test_a_compiler_leaves_it_to_eager_mode() -> None:
    """It traces the steps of the formats that it knows, never those of another one."""

    def model(x: Tensor) -> Tensor:
        options: dict[str, Any] = {"max_steps": 2, "state": "rounded", "check": False}
        return solve(f, torch.zeros(9), x, **options).z

    x = torch.linspace(-1, 1, 9)
    want = model(x)
    torch.compiler.reset()
    assert torch.equal(torch.compile(model, backend="eager")(x), want)
    assert torch.equal(want, want.bfloat16().float())
