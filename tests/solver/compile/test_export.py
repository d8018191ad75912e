"""torch.export of a model with a solve: a program with the bits of eager mode, anywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.solver.cells import MLP
from torch_revdeq import RevDEQ, solve

F32 = torch.float32


class Model(nn.Module):
    """A solve beside a path around it: a gradient that it lost would not be missed at once."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.encoder = nn.Linear(16, 16)
        self.equilibrium = RevDEQ(MLP(), **{"max_steps": 2, **options})

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        return h + self.equilibrium(h)


def exported(model: nn.Module, x: Tensor, *, strict: bool = False) -> Any:
    return torch.export.export(model, (x,), strict=strict, dynamic_shapes={"x": {0: Dim("batch")}})


def gradients(run: Any, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    named = dict(run.named_parameters())
    found = torch.autograd.grad(run(x).double().square().sum(), [x, *named.values()])
    return dict(zip(["x", *named], found, strict=True))


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "frac_bits": {"frac_bits": 20, "rng": "none"},
    "float32 state": {"state": F32},
    "beta of each step": {"beta": [0.3, 1.6]},
    "tol": {"tol": 0.2, "max_steps": 4},
    "per_sample": {"tol": 0.2, "max_steps": 4, "per_sample": True},
    "functional": {"adjoint": "functional", "state": F32},
    "backward_steps": {"backward_steps": 1},
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_bits_and_the_gradient_of_eager_mode(name: str, strict: bool) -> None:
    model, x = Model(**OPTIONS[name]), torch.randn(5, 16)
    grad = name in ("default", "frac_bits")  # and without, as one exports for inference
    with torch.set_grad_enabled(grad):
        program = exported(model, x, strict=strict)
    assert not [n for n in program.graph.nodes if "torch_revdeq" in str(n.target)]
    for run in (program.module(), program.run_decompositions().module()):
        for given in (x, 40 * torch.randn(7, 16)):  # other frac_bits, other steps to arrive
            with torch.no_grad():
                assert torch.equal(run(given), model(given))
        got, want = gradients(run, x), gradients(model, x)
        for key, gradient in want.items():
            # The gradient of each step is computed alike, and summed up in another order.
            assert (got[key] - gradient).norm() <= 1e-5 * gradient.norm()


@pytest.mark.parametrize("state", ["exact", F32])
def test_a_beta_that_learns_stays_a_parameter(state: Any) -> None:
    model, x = Model(state=state), torch.randn(5, 16)
    model.equilibrium.beta = nn.Parameter(torch.tensor(0.4))
    program = exported(model, x).module()
    for value in (0.4, 1.7):
        for run in (program, model):
            with torch.no_grad():
                run.equilibrium.beta.fill_(value)
        assert torch.equal(program(x), model(x))
        got, want = gradients(program, x), gradients(model, x)
        assert (got["x"] - want["x"]).norm() <= 1e-5 * want["x"].norm()
        beta = "equilibrium.beta"
        assert (got[beta] - want[beta]).abs() <= 1e-4 * want[beta].abs()
    with torch.no_grad():
        program.equilibrium.beta.fill_(1.0)  # eager mode raises
    assert program(x).isnan().all() or state == F32


class Everything(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.f, self.start, self.options = MLP(), nn.Linear(16, 16), options

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        def f(z: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
            h = self.f(z["h"], x)
            return {"h": h, "c": torch.tanh(z["c"] + h.mean(1))}

        z0 = {"h": torch.zeros_like(x), "c": x[:, 0]}
        y0 = {"h": self.start(x), "c": -x[:, 0]}
        found = solve(f, z0, x, y0=y0, max_steps=3, save_at=[3, 1], **self.options)
        ends = (found.z, found.y, *found.saved)
        return tuple(leaf for end in ends for leaf in (end["h"], end["c"]))


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16, torch.float64])
def test_everything_a_call_can_hold(dtype: torch.dtype) -> None:
    model, x = Everything().to(dtype), torch.randn(5, 16, dtype=dtype)
    with torch.no_grad():
        program = exported(model, x).module()
        for got, want in zip(program(x), model(x), strict=True):
            assert got.dtype == want.dtype
            assert torch.equal(got, want)


class Routed(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = RevDEQ(_WithAux(), has_aux=True, pass_step=True, max_steps=3, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x, gain=2 * x)


class _WithAux(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = MLP()

    def forward(self, z: Tensor, x: Tensor, *, gain: Tensor, step: int) -> tuple[Tensor, Tensor]:
        h = self.f(z, x) * torch.tanh(gain) / (step + 1)
        return h, h.square().mean()


@pytest.mark.parametrize("aux", ["sum", "mean", "last", "stack"])
def test_aux_steps_and_keywords(aux: str) -> None:
    model, x = Routed(aux=aux), torch.randn(5, 16)
    program = exported(model, x).module()
    for got, want in zip(program(x), model(x), strict=True):
        assert torch.equal(got, want)


ELSEWHERE = """
import sys
import torch
import torch_revdeq
folder = sys.argv[1]
for name in sys.argv[2:]:
    x, want = torch.load(f"{folder}/{name}.pt")
    assert torch.equal(torch.export.load(f"{folder}/{name}.pt2").module()(x), want), name
"""


def test_in_another_process(tmp_path: Path) -> None:
    names = []
    for i, options in enumerate(({}, {"frac_bits": 20}, {"state": F32}, {"tol": 0.2})):
        for strict in (False, True):
            model, x = Model(**options), torch.randn(5, 16)
            names.append(f"{i}-{strict}")
            with torch.no_grad():
                program = exported(model, x, strict=strict)
                torch.save((x, model(x)), tmp_path / f"{names[-1]}.pt")
            torch.export.save(program, tmp_path / f"{names[-1]}.pt2")
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE, str(tmp_path), *names]
    subprocess.run(command, check=True)


def test_what_leaves_the_range_is_nan() -> None:
    model, x = Model(frac_bits=20), torch.randn(5, 16)
    program = exported(model, x).module()
    assert not program(x).isnan().any()
    assert program(x * 1e6).isfinite().all()  # f is bounded, and the start is zeros
    hot = x.clone()
    hot[0, 0] = float("nan")
    assert program(hot).isnan().all()
    unbounded = RevDEQ(nn.Linear(16, 16), max_steps=2)
    z0 = torch.full((5, 16), 2.0**40)

    class Started(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = unbounded

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(z0=x)

    assert exported(Started(), z0).module()(z0).isnan().all()


def test_what_a_program_cannot_hold_is_refused_by_name() -> None:
    refused = {
        "max_steps: expected an integer in torch.export": {"max_steps": lambda: 3},
        "rng: expected 'auto' or 'none' in torch.export": {"rng": "shared"},
        "beta: expected a number": {"beta": 2.5},
        "per_sample: expected a tol in addition": {"per_sample": True},
    }
    for said, options in refused.items():
        with pytest.raises(ValueError, match=said):
            exported(Model(**options), torch.randn(5, 16))
