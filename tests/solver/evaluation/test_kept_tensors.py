"""What f keeps of one evaluation: refused by name where its gradient would be lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_revdeq import CaptureError, solve

FUNCTIONAL: dict[str, Any] = {"adjoint": "functional", "state": torch.float64, "max_steps": 3}


class Cell(nn.Module):
    """Keeps what `keep` makes of its first linear map, by number of the call."""

    def __init__(self, keep: Callable[[Cell, Tensor], None] | None = None) -> None:
        super().__init__()
        self.a, self.b = (nn.Linear(4, 4, dtype=torch.float64) for _ in range(2))
        self.keep, self.calls = keep, 0
        self.kept: Any = None

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        h = self.a(z)
        if self.keep is not None:
            self.keep(self, h)
        self.calls += 1
        return torch.tanh(h + self.b(x))


def in_call(number: int) -> Callable[[Cell, Tensor], None]:
    def keep(f: Cell, h: Tensor) -> None:
        if f.calls == number:
            f.kept = h.square().mean()

    return keep


def last(f: Cell, h: Tensor) -> None:
    f.kept = h.square().mean()


def added_up(f: Cell, h: Tensor) -> None:
    f.kept = h.square().mean() + (0.0 if f.kept is None else f.kept)


def start(*, grad: bool = True) -> Tensor:
    return torch.randn(3, 4, dtype=torch.float64, requires_grad=grad)


@pytest.mark.parametrize("backward", [True, False], ids=["backward", "grad"])
@pytest.mark.parametrize(
    "keep",
    [in_call(0), in_call(1), in_call(5), last, added_up],
    ids=["first", "second", "sixth", "last", "sum"],
)
def test_a_side_loss_is_refused(keep: Callable[[Cell, Tensor], None], backward: bool) -> None:
    f, x = Cell(keep), start()
    loss = solve(f, torch.zeros_like(x), x, **FUNCTIONAL).z.sum() + f.kept
    with pytest.raises(RuntimeError, match=r"f: expected what it computes to reach the loss"):
        loss.backward() if backward else torch.autograd.grad(loss, x)


def test_what_is_kept_and_not_used_is_nobodys_business() -> None:
    found = []
    for keep in (added_up, None):
        torch.manual_seed(0)
        f, x = Cell(keep), start()
        z = solve(f, torch.zeros_like(x), x, **FUNCTIONAL).z
        loss = z.square().sum() if keep is None else z.square().sum() + f.kept.detach()
        found.append(torch.autograd.grad(loss, [x, *f.parameters()]))
    assert all(map(torch.equal, *found))


class Once(nn.Module):
    """Computes its input injection in the first evaluation alone."""

    def __init__(self, make: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = (nn.Linear(4, 4, dtype=torch.float64) for _ in range(2))
        self.make, self.kept = make, None

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.make(self.b, x)
        return torch.tanh(self.a(z) + self.kept)


def learned(b: nn.Linear, x: Tensor) -> Tensor:
    return b(x)


@pytest.mark.parametrize("grad", [True, False], ids=["differentiated", "constant"])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda b, x: 2 * x, r"it was computed there by MulBackward0"),
        (lambda b, x: x, r"it was given there"),
        (learned, r"it was computed there by AddmmBackward0"),
    ],
    ids=["scaled", "as it is", "learned"],
)
def test_an_injection_computed_once(
    make: Callable[[nn.Linear, Tensor], Tensor], said: str, grad: bool
) -> None:
    f, x = Once(make), start(grad=grad)
    if not grad and make is not learned:  # nothing is lost
        solve(f, torch.zeros_like(x), x, **FUNCTIONAL).z.sum().backward()
        return
    with pytest.raises(CaptureError, match=rf"kept from an earlier one \({said}\).*compute it"):
        solve(f, torch.zeros_like(x), x, **FUNCTIONAL)


@pytest.mark.parametrize("adjoint", ["hooks", "checkpoint"])
def test_other_tensors_on_the_way_back(adjoint: Any) -> None:
    f, x = Once(learned), start()
    z = solve(f, torch.zeros_like(x), x, adjoint=adjoint).z
    with pytest.raises(RuntimeError, match=r"f: expected to save the same.*f keeps something"):
        z.sum().backward()


@pytest.mark.parametrize("adjoint", ["hooks", "checkpoint"])
def test_what_autograd_saved_and_f_changed_afterwards(adjoint: Any) -> None:
    w = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)

    def f(z: Tensor, x: Tensor) -> Tensor:
        h = torch.exp(-(z @ w))  # autograd saves the result
        out = torch.tanh(h + x)
        h.add_(1)
        return out

    x = start()
    z = solve(f, torch.zeros_like(x), x, adjoint=adjoint).z
    with pytest.raises(RuntimeError, match=r"f: expected to leave what autograd saved as it is"):
        z.sum().backward()
