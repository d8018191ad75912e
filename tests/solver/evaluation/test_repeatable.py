"""``assert_repeatable``: what it finds, what it leaves alone, and that it leaves f as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_revdeq.testing import assert_repeatable


class Cell(nn.Module):
    """Does one thing that it should or should not."""

    total: Tensor

    def __init__(self, kind: str = "") -> None:
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.kind, self.calls, self.log, self.last = kind, 0, [0.0], None
        self.memory: dict[str, Tensor] = {"k": torch.zeros(2, 4)}
        self.register_buffer("total", torch.zeros(()))
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, z: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out = self.drop(self.norm(self.linear(z) + x))
        self.calls += 1
        self.total += 1
        self.last = out.detach()
        if self.kind == "count":
            out = out * self.calls
        elif self.kind == "buffer":
            out = out + self.total
        elif self.kind == "log":
            self.log.append(float(out.detach().sum()))
        elif self.kind == "cache":
            self.memory["k"] = torch.cat((self.memory["k"], z.detach()))
        elif self.kind == "state":
            z.mul_(2.0)
        elif self.kind == "argument":
            x.data.add_(1.0)
        elif self.kind == "keyword" and mask is not None:
            mask.zero_()
        elif self.kind == "generator":
            out = out + torch.rand(4, generator=self.generator)
        elif self.kind == "grad" and torch.is_grad_enabled():
            out = out * self.calls
        return out


FOUND = {
    "count": r"gave a different result.*without grad mode; it changed.*attributes of Cell",
    "buffer": r"gave a different result.*'total' in Cell",
    "log": r"'log' in Cell grew from 1 to 4",
    "cache": r"'k' in a dict, which grew from \(2, 4\) to \(11, 4\)",
    "state": "changed its state in place",
    "argument": "changed an argument in place",
    "keyword": "changed a keyword argument in place",
    "generator": "gave a different result",
    "grad": "gave a different result.*with grad mode",
}


@pytest.mark.parametrize("kind", ["", *FOUND])
def test_what_is_found(kind: str) -> None:
    torch.manual_seed(0)
    f, z, x = Cell(kind), torch.randn(3, 4), torch.randn(3, 4, requires_grad=True)
    before = [b.clone() for b in f.buffers()]
    held: list[Any] = [f.calls, list(f.log), f.last, f.memory["k"]]
    random, given = torch.get_rng_state(), [t.clone() for t in (z, x)]
    mask = torch.ones(3)
    if kind:
        with pytest.raises(AssertionError, match=f"^f: .*{FOUND[kind]}"):
            assert_repeatable(f, z, x, kwargs={"mask": mask})
    else:
        assert_repeatable(f, z, x, kwargs={"mask": mask})
        assert torch.equal(random, torch.get_rng_state())
    assert all(map(torch.equal, f.buffers(), before))
    assert [f.calls, f.log, f.last] == held[:3] and f.memory["k"] is held[3]
    assert all(map(torch.equal, (z, x), given)) and torch.equal(mask, torch.ones(3))


def test_a_cache_among_the_arguments() -> None:
    class Cache:
        def __init__(self) -> None:
            self.keys = torch.zeros(2, 4)

    def f(z: Tensor, cache: Cache) -> Tensor:
        cache.keys = torch.cat((cache.keys, z))
        return torch.tanh(z)

    cache = Cache()
    with pytest.raises(AssertionError, match=r"'keys' in Cache, which grew from"):
        assert_repeatable(f, torch.randn(1, 4), cache)
    assert cache.keys.shape == (2, 4)


def test_states_of_several_leaves() -> None:
    assert_repeatable(
        lambda z: {"a": z["b"], "b": z["a"] / 0}, {"a": torch.ones(2), "b": torch.ones(2)}
    )


def test_keywords_of_f_are_passed_as_to_solve() -> None:
    f, z0 = Cell(), torch.zeros(2, 4)
    assert_repeatable(f, z0, x=torch.ones(2, 4))
    with pytest.raises(AssertionError, match="f: evaluation 2"):
        assert_repeatable(Cell("count"), z0, x=torch.ones(2, 4))
    with pytest.raises(TypeError, match=r"^x: expected once"):
        assert_repeatable(f, z0, kwargs={"x": z0}, x=z0)
    with pytest.raises(TypeError, match=r"^max_steps: expected a named parameter of f, .*_exact_g"):
        assert_repeatable(f, z0, z0, max_steps=3)
