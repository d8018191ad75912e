"""What one op for all steps of ``LinearCell`` does not take: the solver does, or it is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import revdeq_kernels as rk
from revdeq_kernels.ops.cell import choice as cell_choice
from tests.solver.cell.linear_layers import BF16, F32, cell, inputs, layer, one_op
from torch_revdeq import LinearCell, RevDEQ, solve


class Doubled(LinearCell):
    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return super().forward(z, 2 * x)


class Called(LinearCell):
    def __call__(self, z: Tensor, x: Tensor) -> Tensor:
        return super().__call__(z, 2 * x)


class OfSum(LinearCell):
    def of_input(self, x: Tensor) -> Tensor:
        return super().of_input(x).sum(0, keepdim=True)  # of a shape that is broadcast


def replaced() -> LinearCell:
    """As libraries that wrap modules do it: the method of this one cell."""
    f = cell()
    inner = f.forward
    f.forward = lambda z, x: 0.5 * inner(z, x)
    return f


def hooked() -> LinearCell:
    f = cell()
    f.register_forward_hook(lambda module, args, out: out)
    return f


UNSUITED: list[tuple[dict[str, Any], str]] = [
    ({"tol": 1e-3}, "it takes tol with per_sample=True, or neither, got tol=0.001"),
    ({"tol": 1e-3, "per_sample": True, "check_every": 2}, "it supports only check_every=1"),
    ({"adjoint": "backprop"}, "it supports only adjoint='reversible'"),
    ({"check": False}, "it supports only check=True"),
    ({"save_at": [2]}, "it supports only save_at=.."),
    ({"backward_steps": 2}, "it supports only backward_steps=None"),
    ({"store_last": 1}, "it supports only store_last=0"),
    ({"state": torch.float64}, "it takes state='exact' or torch.float32, got torch.float64"),
    ({"beta": torch.tensor(0.5)}, "it takes one number for beta, got Tensor"),
    ({"beta": [0.5] * 8}, "it takes one number for beta, got list"),
    ({"f": Doubled(12, 16)}, "Doubled has its own forward"),
    ({"f": Called(12, 16)}, "Called has its own __call__"),
    ({"f": OfSum(12, 16)}, "OfSum has its own of_input"),
    ({"f": replaced()}, "LinearCell has its own forward"),
    ({"f": hooked()}, "the cell has hooks"),
    ({"f": LinearCell(12, 16, dtype=torch.float64)}, "it takes parameters in float32"),
    ({"f": LinearCell(12, 16, dtype=BF16)}, "it takes x and z0 in torch.bfloat16"),
]


@one_op
@pytest.mark.parametrize(("options", "reason"), UNSUITED)
def test_what_one_op_does_not_take_is_refused_by_name_and_else_solved(
    options: dict[str, Any], reason: str, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    f = options.get("f", cell())
    rest = {name: value for name, value in options.items() if name != "f"}
    dtype = F32 if f.W.dtype == BF16 else f.W.dtype
    x = inputs(dtype=dtype)
    message = f"^implementation: '{implementation}' cannot take.*{reason}"
    with pytest.raises(ValueError, match=message):
        layer(implementation, f, **rest)(x)
    if f.W.dtype == BF16:
        return  # nor does F.linear take another x
    monkeypatch.setattr(cell_choice, "fastest", lambda w, act: implementation)
    model = layer(None, f, **rest)
    assert torch.equal(model(x), solve(f, f.start(x), x, **rest).z)
    assert model.stats is not None and model.stats.route.startswith("solver: ")


@one_op
def test_a_second_start_and_autocast_and_transforms(implementation: str) -> None:
    model = layer(implementation)
    with pytest.raises(ValueError, match="it supports only y0=None"):
        model(inputs(), y0=torch.ones(6, 16))
    with torch.autocast("cpu", BF16), pytest.raises(ValueError, match="does not follow autocast"):
        model(inputs())
    with pytest.raises(ValueError, match=r"not support torch\.func transforms"):
        torch.func.vmap(model)(inputs()[None])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps: expected"),
        ({"beta": 1.0}, "beta: expected"),
        ({"frac_bits": 40}, "frac_bits: expected"),
        ({"state": F32, "frac_bits": 8}, "frac_bits: expected 'auto' for a float state"),
        ({"rng": "once"}, "rng: expected one of"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer("composite", **options)(inputs())


def test_names() -> None:
    with pytest.raises(ValueError, match="implementation: expected one of 'solver', 'composite'"):
        layer("cudnn")(inputs())
    with pytest.raises(TypeError, match="implementation: expected None for a cell of Linear"):
        RevDEQ(nn.Linear(4, 4), implementation="composite")
    w = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="implementation: expected one of 'composite'"):
        rk.linear_cell_forward(w, w, w, 0.5, 1, implementation="cudnn")


@one_op
def test_an_exported_program_has_the_bits_of_the_solver(implementation: str) -> None:
    """It is made of plain operations, whatever takes the steps in eager mode."""
    model, x = layer(implementation, max_steps=3), inputs()
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        assert torch.equal(program.module()(x), layer("solver", max_steps=3)(x))
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets and not any("linear_cell" in target for target in targets)


# ---- shapes that nothing can take --------------------------------------------------------------


@pytest.mark.parametrize("implementation", [None, "solver", "composite"])
@pytest.mark.parametrize(
    ("x", "z0", "said"),
    [
        ((3, 5), None, r"^f: expected x of shape \[\.\.\., 12\], .* got \(3, 5\); pass such an x"),
        ((3, 12), (3, 5), r"^z0: expected shape \(3, 16\) for .*, got \(3, 5\); leave z0 out"),
        ((3, 12), (2, 16), r"^z0: expected shape \(3, 16\) for .*, got \(2, 16\); leave z0 out"),
        ((3, 12), (16,), r"^z0: expected shape \(3, 16\) for .*, got \(16,\); leave z0 out"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(
    x: tuple[int, ...], z0: tuple[int, ...] | None, said: str, implementation: str | None
) -> None:
    own = RevDEQ(LinearCell(12, 16), implementation=implementation)
    with pytest.raises(ValueError, match=said):
        own(torch.zeros(x), z0=None if z0 is None else torch.zeros(z0))


def test_an_x_that_is_broadcast_fits() -> None:
    own, x, z0 = RevDEQ(LinearCell(12, 16)), torch.zeros(1, 12), torch.zeros(2, 3, 16)
    assert own(x, z0=z0).shape == z0.shape
    hooked_cell = LinearCell(12, 16)
    hooked_cell.register_forward_pre_hook(lambda module, args: (args[0], args[1][..., :12]))
    assert RevDEQ(hooked_cell)(torch.zeros(3, 13)).shape == (3, 16)
