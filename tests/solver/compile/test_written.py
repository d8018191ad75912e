"""What f writes in a compiled graph, and what the graph writes to f: refused, never a stale value.

In a compiled model f runs inside of an operator. The rest of the graph would read what f wrote in
the call before, and f what stood there before the graph ran.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.solver.compile.compiling import whole
from torch_revdeq import RevDEQ, solve
from torch_revdeq.evaluation.effects.attributes import Attributes

Write = Callable[["Writing", Tensor], None]


class Writing(nn.Module):
    """A cell that does something besides."""

    gain: Tensor

    def __init__(self, write: Write | None = None) -> None:
        super().__init__()
        self.of_z, self.write = nn.Linear(4, 4), write
        self.inner = nn.Identity()
        self.aux: Any = None
        self.count = 0
        self.kept: dict[str, Tensor] = {}
        self.losses: list[Tensor] = [torch.zeros(())]
        self.names: set[int] = set()
        self.recent: deque[Tensor] = deque(maxlen=2)
        self.total = torch.zeros(())
        self.aside = SimpleNamespace(value=torch.zeros(()), seen=[])
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("other", torch.ones(()))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        h = self.of_z(z) + x * self.gain
        if self.write is not None:
            self.write(self, h)
        return torch.tanh(h + self.count + self.total + self.losses[-1])


def attribute(f: Writing, h: Tensor) -> None:
    f.aux = h.square().mean()


def number(f: Writing, h: Tensor) -> None:
    f.count += 1


def new_attribute(f: Writing, h: Tensor) -> None:
    f.fresh = h.detach()


def of_a_submodule(f: Writing, h: Tensor) -> None:
    f.inner.aux = h.detach()


def element(f: Writing, h: Tensor) -> None:
    f.losses[0] = h.detach().mean() * 0


def appended(f: Writing, h: Tensor) -> None:
    f.losses.append(h.detach().mean() * 0)


def entry(f: Writing, h: Tensor) -> None:
    f.kept["h"] = h.detach()


def member(f: Writing, h: Tensor) -> None:
    f.names.add(len(f.names))


def queued(f: Writing, h: Tensor) -> None:
    f.recent.append(h.detach())


def in_place(f: Writing, h: Tensor) -> None:
    f.total += h.detach().mean() * 0


def assigned_buffer(f: Writing, h: Tensor) -> None:
    f.other = h.detach().max()


def attribute_of_an_object(f: Writing, h: Tensor) -> None:
    f.aside.value = h.detach().max()


def list_of_an_object(f: Writing, h: Tensor) -> None:
    f.aside.seen.append(1.0)


WRITES = [
    (attribute, "'aux' in Writing"),
    (number, "'count' in Writing"),
    (new_attribute, "'fresh' in Writing"),
    (of_a_submodule, "'aux' in Identity"),
    (element, "'losses' in Writing"),
    (appended, "'losses' in Writing"),
    (entry, "'kept' in Writing"),
    (member, "'names' in Writing"),
    (queued, "'recent' in Writing"),
    (in_place, "'total' in Writing"),
    (assigned_buffer, "'other' in Writing"),
    (attribute_of_an_object, "'value' in an object that f holds"),
    (list_of_an_object, "an element in an object that f holds"),
]


@pytest.mark.parametrize(("write", "what"), WRITES)
@pytest.mark.parametrize("grad", [True, False])
def test_what_f_writes_is_refused(write: Write, what: str, grad: bool) -> None:
    layer, x = RevDEQ(Writing(write), max_steps=2, check=False), torch.randn(3, 4)
    compiled = whole(layer)
    said = f"write no attributes in a compiled graph, got a change of {what}"
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=said):
        compiled(x)


def test_the_way_out_is_a_compiled_f() -> None:
    layer, x = RevDEQ(Writing(attribute), max_steps=2), torch.randn(3, 4)
    with torch.no_grad():
        layer(x)
        want = layer.f.aux
        layer.f.compile(backend="aot_eager")
        for scale in (0.5, 1.0):
            layer(scale * x)
    assert torch.equal(layer.f.aux, want)  # type: ignore[union-attr]


def lazily(f: Writing, h: Tensor) -> None:
    if "rotary" not in f.kept:
        f.kept["rotary"] = torch.ones(4)


def test_what_is_kept_since_an_earlier_call_is_no_change() -> None:
    layer, x = RevDEQ(Writing(lazily), max_steps=2), torch.randn(3, 4)
    with pytest.raises(RuntimeError, match="fill what f keeps before the first compiled call"):
        whole(layer)(x)
    torch.compiler.reset()
    assert torch.equal(whole(layer)(x), layer(x))  # it is there now


def test_the_same_value_again_is_no_change() -> None:
    def write(f: Writing, h: Tensor) -> None:
        f.count = int(str(0))
        f.aux = None

    layer, x = RevDEQ(Writing(write), max_steps=2), torch.randn(3, 4)
    assert torch.equal(whole(layer)(x), layer(x))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weights_that_torch_computes_before_each_call_are_no_change() -> None:
    from torch.nn.utils import prune, weight_norm

    for change in (weight_norm, lambda m: prune.l1_unstructured(m, "weight", 0.5)):
        torch.compiler.reset()
        layer, x = RevDEQ(Writing(), max_steps=2), torch.randn(3, 4)
        change(layer.f.of_z)  # type: ignore[operator, union-attr]
        z = whole(layer)(x)
        assert torch.equal(z, layer(x))


def test_buffers_and_hooks_are_not_attributes() -> None:
    f = nn.BatchNorm1d(4)
    before = Attributes(f)
    f(torch.randn(3, 4))
    f.register_forward_hook(lambda *_: None)
    f.eval()
    assert before.changed() is None


# ---- what the graph writes to f ------------------------------------------------------------------


def sets_attribute(f: Writing, n: float) -> None:
    f.count = n  # type: ignore[assignment]


def appends(f: Writing, n: float) -> None:
    f.losses.append(torch.full((), n))


def fills_buffer(f: Writing, n: float) -> None:
    f.gain.fill_(n)


def replaces_buffer(f: Writing, n: float) -> None:
    f.gain = torch.full((), n)


def fills_attribute(f: Writing, n: float) -> None:
    f.total.fill_(n)


def scales_parameter(f: Writing, n: float) -> None:
    with torch.no_grad():
        f.of_z.bias.fill_(n)


WRITES_BEFORE = (
    sets_attribute,
    appends,
    fills_buffer,
    replaces_buffer,
    fills_attribute,
    scales_parameter,
)


@pytest.mark.parametrize("write", WRITES_BEFORE)
def test_what_the_graph_wrote_breaks_it_and_f_sees_it(write: Callable[..., None]) -> None:
    f = Writing()

    def run(x: Tensor, n: float) -> Tensor:
        write(f, n)
        return solve(f, torch.zeros_like(x), x, max_steps=2).z

    compiled, x = torch.compile(run, backend="aot_eager"), torch.randn(3, 4)
    with torch.no_grad():
        results = []
        for n in (0.25, 0.5, 0.75):
            results.append(compiled(x, n))
            assert torch.equal(results[-1], run(x, n))
    assert not torch.equal(results[0], results[1])
    torch.compiler.reset()
    with torch.no_grad(), pytest.raises(Exception, match="solve: expected an f that the graph has"):
        whole(run)(x, 0.25)


def test_what_the_graph_writes_to_the_layer_is_seen() -> None:
    layer = RevDEQ(Writing(), max_steps=2)

    def run(x: Tensor, beta: float) -> Tensor:
        layer.beta = beta
        layer.options["max_steps"] = round(beta * 10)
        return layer(x)

    compiled = whole(run)
    for beta in (0.3, 0.4, 0.6):
        x = torch.randn(3, 4)
        assert torch.equal(compiled(x, beta), run(x, beta))


def test_what_a_norm_writes_is_written() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return torch.tanh(self.norm(self.a(z) + x))

    layers = []
    for _ in range(2):
        torch.manual_seed(1)
        layers.append(RevDEQ(Normed(), max_steps=2))
    x = torch.randn(6, 4)
    runs = (layers[0], whole(layers[1]))
    for _ in range(2):
        assert torch.equal(*(run(x).detach() for run in runs))
    want, got = (dict(layer.named_buffers()) for layer in layers)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert int(want["f.norm.num_batches_tracked"]) == 8
