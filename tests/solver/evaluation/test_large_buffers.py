"""Large buffers: read without being copied in every solve, and written once per evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_revdeq import solve
from torch_revdeq.evaluation.effects.holdings import search
from torch_revdeq.evaluation.effects.written import Written
from torch_revdeq.evaluation.replay import Evaluation

REPLAYED = ["reversible", "checkpoint", "hooks", "functional"]
LARGE = 2**16 + 1


class Codebook(nn.Module):
    """Reads a large buffer, and writes another one as it is told, in training mode."""

    table: Tensor
    total: Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(8, 8), how
        self.register_buffer("table", torch.ones(LARGE))
        self.register_buffer("total", torch.zeros(LARGE))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        if self.training and self.how == "data":
            self.total.data.add_(1.0)
        elif self.training and self.how == "in place":
            self.total += 1.0
        elif self.training and self.how == "assigned":
            self.total = self.total + 1.0
        return torch.tanh(self.linear(z) * self.table[0] + x)


def inputs() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 8)


@pytest.mark.parametrize("adjoint", REPLAYED)
@pytest.mark.parametrize("how", ["data", "in place", "assigned"])
def test_a_large_buffer_counts_once(how: str, adjoint: Any) -> None:
    f, x = Codebook(how), inputs()
    options: dict[str, Any] = {"adjoint": adjoint, "max_steps": 3}
    if adjoint == "functional":
        options["state"] = torch.float32
    f.eval()
    solve(f, x, x, **options).z.sum().backward()
    assert f.total.eq(0).all()
    f.train()  # what was seen in evaluation mode says nothing of training
    for count in (1, 2):
        solve(f, x, x, **options).z.sum().backward()
        assert f.total.eq(count * 6).all()


def test_what_f_only_reads_is_copied_once() -> None:
    f, x = Codebook("nothing"), inputs()
    for asked in (2, 0):
        written = Written(search([f]))
        written.before_first()
        assert len(written.copies) == asked
        f(x, x)
        written.after_first()
        written.end()
        assert not written.copies and not written.values


def test_what_f_is_seen_to_write_is_kept() -> None:
    f, x = Codebook("data"), inputs()
    for asked in (2, 0):
        written = Written(search([f]))
        written.before_first()
        assert len(written.copies) == asked
        f(x, x)
        written.after_first()
        written.end()
        assert [id(t) for t in written.values] == [id(f.total)]


@pytest.mark.parametrize("adjoint", ["reversible", "hooks"])
def test_the_way_back_copies_no_large_buffer(adjoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Evaluation] = []
    replay = Evaluation.replay

    def noted(self: Evaluation, leaves: Any) -> Any:
        found.append(self)
        return replay(self, leaves)

    monkeypatch.setattr(Evaluation, "replay", noted)
    f, x = Codebook("nothing"), inputs()
    solve(f, x, x, adjoint=adjoint).z.sum().backward()
    assert found
    for evaluation in found:
        assert evaluation.writes is not None and not evaluation.writes.values
