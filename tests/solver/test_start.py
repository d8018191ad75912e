"""The start that a layer chooses: an f that does not fit it names z0, any other error stays."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_revdeq import RevDEQ, solve

Z0 = torch.zeros(3, 4)


class Into(nn.Module):
    """A state of 16 features from inputs of any width."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(16, 16)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.w(z) + x.sum(-1, keepdim=True))


@pytest.mark.parametrize(
    ("shape", "suggested"),
    [((4,), r"\(\)"), ((4, 8), r"\(4,\)"), ((4, 8, 3), r"\(4, 8\)"), ((4, 8, 3, 2), r"\(4, 8\)")],
)
def test_a_mask_is_suggested_of_dimensions_that_are_no_features(
    shape: tuple[int, ...], suggested: str
) -> None:
    z0, mask = torch.zeros(shape), torch.ones(5, dtype=torch.bool)
    with pytest.raises(ValueError, match=rf"^residual_mask: .*pass one of shape {suggested} for"):
        solve(lambda z: 0.5 * z, z0, residual_mask=mask)


@pytest.mark.parametrize(
    "text",
    ["batch size must be even", "unknown shape option", "the model's dimension must be positive"],
)
@pytest.mark.parametrize("kind", [ValueError, RuntimeError, TypeError])
def test_an_error_of_the_users_own_is_left_alone(kind: Any, text: str) -> None:
    def f(z: Tensor, x: Tensor) -> Tensor:
        raise kind(text)

    with pytest.raises(kind) as raised:
        RevDEQ(f)(torch.zeros(4, 8))
    assert str(raised.value) == text


TALL = torch.zeros(4, 3)


@pytest.mark.parametrize(
    "operation",
    [
        nn.LayerNorm(8),
        nn.BatchNorm1d(8),
        nn.GroupNorm(2, 8),
        lambda z: nn.GRUCell(3, 8)(z, z),
        nn.Conv1d(8, 8, 1),
        nn.Conv2d(8, 8, 1),
        lambda z: z.view(4, 8),
        lambda z: z.expand(4, 8),
        lambda z: torch.cat([z, torch.zeros(5, 8)]),
        lambda z: torch.stack([z, torch.zeros(4, 8)]),
        lambda z: torch.bmm(z, torch.zeros(4, 8, 8)),
        lambda z: torch.einsum("bi,ij->bj", z, torch.zeros(8, 8)),
        lambda z: z @ torch.zeros(3, 3, dtype=torch.float64),
    ],
)
def test_an_operation_of_torch_that_does_not_fit_names_z0(operation: Any) -> None:
    with pytest.raises((RuntimeError, ValueError), match="RevDEQ used zeros like"):
        RevDEQ(lambda z, x: operation(z))(TALL)


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (Into(), torch.randn(4, 3)),
        (lambda z, x: z + torch.ones(4, 16), torch.randn(4, 3)),
        (Into(), torch.randint(9, (4, 16))),
    ],
    ids=["matmul", "sum", "integers"],
)
def test_a_start_of_another_width_names_z0(f: Any, x: Tensor) -> None:
    layer = RevDEQ(f)
    with pytest.raises((RuntimeError, ValueError, TypeError)) as raised:
        layer(x)
    assert "RevDEQ used zeros like its first input" in str(raised.value)
    assert str(tuple(x.shape)) in str(raised.value) and "pass z0=" in str(raised.value)
    assert type(raised.value) is type(raised.value.__cause__)
    if x.is_floating_point():
        with pytest.raises((RuntimeError, ValueError)) as plain:
            layer(x, z0=torch.zeros_like(x))  # who named a start is not told of another
        assert "RevDEQ used zeros" not in str(plain.value)
    layer = RevDEQ(Into())
    assert layer(x, z0=torch.zeros(4, 16)).shape == (4, 16)


def test_a_result_of_another_width_says_which_start_to_pass() -> None:
    def f(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z.mean(-1, keepdim=True) + x.repeat(1, 6)[:, :16])

    layer, x = RevDEQ(f), torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"^z0: expected the shape that f returns") as said:
        layer(x)
    text = str(said.value)
    assert "(4, 16), got the default of RevDEQ, zeros like its first input, of shape (4, 3)" in text
    assert "pass z0=torch.zeros(4, 16) in the call" in text and type(said.value) is ValueError
    assert layer(x[:, :1].repeat(1, 4), z0=torch.zeros(4, 16)).shape == (4, 16)
    with pytest.raises(ValueError, match=r"^f: expected a result of the shape of z0, \(4, 3\)"):
        layer(x, z0=torch.zeros_like(x))  # who named a start is not told of another


def test_several_leaves_of_another_width() -> None:
    def f(z: Any, x: Any) -> Any:
        return {name: leaf.new_zeros(4, 16) for name, leaf in z.items()}

    with pytest.raises(ValueError, match=r"pass z0=leaves of shape \(4, 16\), \(4, 16\) in"):
        RevDEQ(f)({"h": TALL, "c": TALL})


def test_a_width_that_changes_later_is_no_matter_of_the_start() -> None:
    widths = iter([3, 4])
    with pytest.raises(ValueError, match=r"^f: expected a result of the shape of z0, \(4, 3\)"):
        RevDEQ(lambda z, x: z.new_zeros(4, next(widths)))(TALL)


def test_a_state_of_two_tensors_names_z0() -> None:
    cell = nn.LSTMCell(3, 3)
    for f in (lambda z, x: cell(x, z), lambda z, x: (z, z)):
        with pytest.raises((TypeError, ValueError, RuntimeError), match="RevDEQ used zeros l"):
            RevDEQ(f)(TALL)


def test_other_errors_of_f_stay_as_they_are() -> None:
    def broken(z: Tensor, x: Tensor) -> Tensor:
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match=r"^no luck$"):
        RevDEQ(broken)(Z0)


def test_an_input_that_no_start_can_be_made_of() -> None:
    for x in ([Z0, 3], {"a": "text"}, OrderedDict(a=object())):
        with pytest.raises(TypeError, match=r"z0: .* initial state .* input that contains .*z0="):
            RevDEQ(lambda z: 0.5 * z)(x)
