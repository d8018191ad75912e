"""What can be no state, and what the errors of NaN, Inf and the range say of where they are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils import _pytree as pytree

from tests.solver.cells import MLP
from torch_revdeq import LinearCell, RangeError, RevDEQ, fixed_point, solve
from torch_revdeq.evaluation import flat_function
from torch_revdeq.evaluation.flat_function import flatten

F32 = torch.float32
NAN, INF = float("nan"), float("inf")


def same(z: Any) -> Any:
    return z


# ---- kinds of states -----------------------------------------------------------------------------


@dataclass
class Carry:
    """As the reasoning models have it."""

    h: Tensor
    c: Tensor


def jagged() -> Tensor:
    rows = [torch.randn(3, 4), torch.randn(5, 4)]
    return torch.nested.nested_tensor(rows, layout=torch.jagged)


def distributed() -> Any:
    return distribute_tensor(torch.zeros(4, 2), init_device_mesh("cpu", (1,)), [Shard(0)])


KINDS: list[tuple[Any, str]] = [
    (torch.zeros(3, dtype=torch.complex64), r"complex64; pass torch.view_as_real\("),
    (
        Carry(torch.zeros(3), torch.zeros(3)),
        r"Carry; .*_pytree.register_dataclass\(Carry\).*tuple",
    ),
    (SimpleNamespace(h=torch.zeros(3)), r"SimpleNamespace; .*register_pytree_node\(Sim.*dict or"),
    (torch.zeros(3).numpy(), r"ndarray; pass torch.as_tensor\("),
    ("abc", "str; pass what is not part of the state in args"),
    (None, "NoneType; pass what is not part"),
    (torch.zeros(3, dtype=torch.int64), "int64; pass what is not part"),
    (torch.zeros(3, 3).to_sparse(), r"torch.sparse_coo; pass .to_dense\(\)"),
    (TwoTensor(torch.zeros(3), torch.zeros(3)), r"TwoTensor; .*\.to_local\(\) of a DTensor"),
]


@pytest.mark.parametrize(("leaf", "words"), KINDS, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("inside", [same, lambda leaf: {"a": torch.zeros(3), "b": [leaf]}])
def test_a_leaf_that_is_none_names_its_way_out(inside: Any, leaf: Any, words: str) -> None:
    value = inside(leaf)
    for state in ("auto", F32):
        with pytest.raises(TypeError, match=f"z0: expected .* as leaves, got .*{words}"):
            solve(same, value, state=state)
    if leaf is not None:  # without a second start
        with pytest.raises(TypeError, match=f"y0: expected .* as leaves, got .*{words}"):
            solve(same, torch.zeros(3), y0=value)
    with pytest.raises(TypeError, match=r"z0: expected .* as leaves"):
        fixed_point(same, value)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors() -> None:
    for value in (jagged(), torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])):
        with pytest.raises(TypeError, match=r"got a nested tensor; pass its .values\(\)"):
            solve(same, value)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantized_tensors() -> None:
    with pytest.raises(TypeError, match=r"qint8; pass .dequantize\(\)"):
        solve(same, torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8))


def test_sharded_tensors() -> None:
    store = HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with pytest.raises(TypeError, match=r"got DTensor; .*\.to_local\(\)"):
            solve(same, distributed())
    finally:
        torch.distributed.destroy_process_group()


class Named(Tensor):
    """A subclass that computes as a tensor does."""


def test_tensors_by_other_names_are_states() -> None:
    plain = torch.randn(3, requires_grad=True)
    (want,) = torch.autograd.grad(solve(torch.tanh, plain).z.sum(), plain)
    for z0 in (nn.Parameter(plain.detach()), plain.detach().as_subclass(Named).requires_grad_()):
        solve(torch.tanh, z0).z.sum().backward()
        assert z0.grad is not None and torch.equal(z0.grad.as_subclass(Tensor), want)
    assert isinstance(solve(torch.tanh, nn.Buffer(torch.zeros(3))).z, Tensor)


def test_the_ways_out_lead_there() -> None:
    """What the messages name exists, and a solve by it has the gradient."""

    @dataclass
    class Pair:
        h: Tensor
        c: Tensor

    pytree.register_dataclass(Pair)
    x = torch.randn(3, requires_grad=True)
    end = solve(
        lambda p: Pair(torch.tanh(p.c) + x, 0.5 * p.h), Pair(torch.zeros(3), torch.zeros(3))
    )
    assert isinstance(end.z, Pair)
    end.z.h.sum().backward()
    assert x.grad is not None
    z0 = torch.randn(3, 2)

    def rotated(z: Tensor) -> Tensor:
        return torch.view_as_real(0.5j * torch.view_as_complex(z))

    assert solve(rotated, z0).z.shape == (3, 2)
    assert callable(pytree.register_pytree_node)


class Elsewhere:
    """What a tensor on another device says of it."""

    type = "mps"

    def __str__(self) -> str:
        return "mps:0"


def test_a_device_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnMps(Tensor):
        device: Any = Elsewhere()

    monkeypatch.setattr(flat_function, "plain_leaf", lambda name, leaf: leaf)
    with pytest.raises(ValueError, match=r"z0: expected on a device with float64, .* got mps"):
        flatten("z0", torch.zeros(3).as_subclass(OnMps))


# ---- no numbers ----------------------------------------------------------------------------------


def filled(value: float, *places: tuple[int, ...]) -> Tensor:
    tensor = torch.zeros(3, 4)
    for place in places:
        tensor[place] = value
    return tensor


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_what_is_no_number_is_named_and_placed(value: float) -> None:
    bad = filled(value, (1, 2), (2, 0))
    start = "f: expected finite numbers in z0, y0 and f(z0), got "
    rest = f"{value} in {{}} at index [1, 2], the first of 2 in a tensor of 12; fix f or its input"
    good = torch.zeros(3, 4)
    tree = {"a": good, "b": [good, bad]}
    calls = {
        "z0": lambda: solve(torch.tanh, bad),
        "y0": lambda: solve(torch.tanh, good, y0=bad),
        "f(z0)": lambda: solve(lambda z: z + bad, good),
        "z0['b'][1]": lambda: solve(lambda z: z, tree),
        "f(z0)['b'][1]": lambda: solve(lambda z: tree, {"a": good, "b": [good, good]}),
    }
    for where, call in calls.items():
        with pytest.raises(RuntimeError, match=re.escape(start + rest.format(where))):
            call()
    with pytest.raises(RuntimeError, match=re.escape("the only one in a tensor of 12")):
        solve(torch.tanh, filled(value, (0, 0)))


def test_what_is_too_large_is_named_and_placed() -> None:
    large = filled(-1e12, (2, 3))
    with pytest.raises(RuntimeError, match=re.escape("got -1e+12 in f(z0) at index [2, 3]; scale")):
        solve(lambda z: z + large, torch.zeros(3, 4))
    with pytest.raises(RuntimeError, match=re.escape("got -1e+12 in z0[1] at index [2, 3]; scale")):
        solve(same, (torch.zeros(3, 4), large))


@pytest.mark.parametrize("act", ["tanh", "relu"])
def test_the_cell_in_one_op_says_the_same(act: str) -> None:
    cell = LinearCell(4, 4, act)
    nn.init.ones_(cell.U)  # of an infinite x act(U x) is then infinite, whatever act is
    layer = RevDEQ(cell, implementation="composite")
    z0, x = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    z0[1, 2, 3] = NAN
    with pytest.raises(RuntimeError, match=re.escape("got nan in z0 at index [1, 2, 3], the only")):
        layer(x, z0=z0)
    if act == "relu":
        x[1, 0, 2] = INF
        with pytest.raises(RuntimeError, match=r"got (nan|inf) in f\(z0\) at index \[1, 0, "):
            layer(x)


# ---- beyond the range ----------------------------------------------------------------------------

OUT = "got a larger number, Inf or NaN"


def test_the_range_says_where_it_was_left_if_that_is_known() -> None:
    good = torch.zeros(3, 4)
    bad, big = filled(NAN, (1, 2)), filled(-3e3, (0, 1))
    cases = [
        (torch.tanh, bad, " (nan in z0 at index [1, 2], the only one in a tensor of 12)"),
        (torch.tanh, big, " (-3e+03 in z0 at index [0, 1])"),
        (lambda z: z + bad, good, " (f holds NaN at the end of the solve)"),
        (lambda z: z + filled(INF, (0, 0)), good, " (f holds Inf at the end of the solve)"),
        (lambda z: z + 1e6, good, " (f has norm 3.47e+06 at the end of the solve)"),
    ]
    for f, z0, words in cases:
        with pytest.raises(RangeError, match=re.escape(f"{OUT}{words}; pass a smaller")):
            solve(f, z0, frac_bits=20)
    with pytest.raises(RangeError, match=re.escape(" (f['b'] holds NaN at the end")):
        solve(lambda z: {"a": z["a"], "b": z["b"] + bad}, {"a": good, "b": good}, frac_bits=20)
    with pytest.raises(RangeError, match=re.escape(" (nan in y0 at index [1, 2], ")):
        solve(torch.tanh, good, y0=bad, frac_bits=20)


def test_the_range_says_nothing_that_it_does_not_know() -> None:
    """f was out of the range in one evaluation only, and is not any more at the end."""
    calls: list[int] = []

    def once(z: Tensor) -> Tensor:
        calls.append(1)
        return torch.tanh(z) + (1e6 if len(calls) == 3 else 0.0)

    with pytest.raises(RangeError, match=re.escape(f"{OUT}; pass a smaller")):
        solve(once, torch.zeros(3, 4), frac_bits=20)


# ---- states without elements ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "adjoint"),
    [
        *[(state, "reversible") for state in ("exact", F32, torch.float64)],
        *[(state, "hooks") for state in ("exact", F32, torch.float64)],
        *[(state, "functional") for state in (F32, torch.float64)],
    ],
)
@pytest.mark.parametrize("shape", [(0, 16), (3, 0, 16)], ids=str)
def test_a_state_without_elements_came_back(shape: Any, state: Any, adjoint: Any) -> None:
    f, x = MLP(), torch.zeros(shape, requires_grad=True)
    end = solve(f, torch.zeros(shape), x, state=state, adjoint=adjoint, max_steps=3)
    assert end.stats.reconstruction_error is None
    end.z.sum().backward()
    assert end.stats.reconstruction_error == 0.0
    assert x.grad is not None and x.grad.shape == shape
    layer = RevDEQ(LinearCell(16, 16), implementation="composite")
    layer(x).sum().backward()
    assert layer.stats is not None and layer.stats.reconstruction_error == 0.0
