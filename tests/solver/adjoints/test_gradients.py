"""Gradients: bit for bit those of stored activations in exact form, within bounds in float."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.solver.cells import CELLS, DRAWING, MLP, Block, cell_and_input
from tests.solver.solving import loop
from tests.tolerances import assert_within, beside_bound, gradient_bound, reconstruction_bound
from torch_revdeq import solve
from torch_revdeq.testing import assert_exact_gradients

BETAS = [0.5, 0.7, 0.8, 0.9, 1.2]


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("cell", CELLS)
def test_exact_gradients_have_the_bits_of_stored_activations(
    cell: str, beta: float, autocast: bool
) -> None:
    f, x = cell_and_input(cell)
    for steps in (1, 3, 12, 32) if beta in (0.5, 0.9) else (1, 3, 12):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            stats = assert_exact_gradients(
                f, torch.zeros_like(x), x, beta=beta, max_steps=steps, state="exact"
            )
        assert stats.reconstruction_error == 0.0


SITUATIONS: dict[str, dict[str, Any]] = {
    "a start of zeros": {"z0": torch.zeros_like},
    "a warm start": {"y0": torch.randn_like},
    "a beta for each step": {"beta": [0.5, 0.8, 1.2, 0.6, 0.9]},
    "a beta of the step": {"beta": lambda n: 0.5 + 0.1 * n},
    "a beta that learns": {"beta": torch.tensor(0.7, requires_grad=True)},
    "random numbers that are shared": {"rng": "shared"},
    "autocast": {"autocast": True},
    "a loss of one state on the way": {"save_at": [2]},
    "losses of states on the way": {"save_at": [1, 5]},
    "losses of states in another order": {"save_at": [4, 3, 1]},
    "the last step alone": {"backward_steps": 1},
    "the last steps, from a warm start": {"backward_steps": 3, "y0": torch.randn_like},
    "the last steps, which are all": {"backward_steps": 5},
    "more last steps than there are": {"backward_steps": 9},
    "the last graph kept": {"store_last": 1},
    "graphs kept, from a warm start": {"store_last": 3, "y0": torch.randn_like},
    "all graphs kept": {"store_last": 10},
    "graphs kept, autocast": {"store_last": 3, "autocast": True},
    "everything at once": {"backward_steps": 4, "save_at": [5, 4, 2], "store_last": 3},
}


TAKEN = [
    (name, adjoint)
    for name, options in SITUATIONS.items()
    for adjoint in ("reversible", "hooks", "checkpoint")
    if adjoint == "reversible" or "store_last" not in options
]


@pytest.mark.parametrize(("name", "adjoint"), TAKEN)
@pytest.mark.parametrize("cell", [*CELLS, *DRAWING])
def test_every_adjoint_has_the_same_bits_with(cell: str, name: str, adjoint: str) -> None:
    options = {"z0": torch.randn_like, "beta": 0.7, **SITUATIONS[name]}
    f, x = cell_and_input(cell)
    z0, y0 = options.pop("z0")(x), options.pop("y0", None)
    y0 = None if y0 is None else y0(x).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=options.pop("autocast", False)):
        stats = assert_exact_gradients(
            f, z0, x, y0=y0, max_steps=5, state="exact", adjoint=adjoint, **options
        )
    assert stats.reconstruction_error == (None if adjoint == "checkpoint" else 0.0)


def test_a_warm_start_has_gradients_for_both() -> None:
    f, x = cell_and_input("mlp")
    z0, y0 = (torch.randn_like(x).requires_grad_() for _ in range(2))
    dz, dy = torch.autograd.grad(solve(f, z0, x, y0=y0, max_steps=2).z.sum(), [z0, y0])
    assert not torch.equal(dz, dy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_parameters(dtype: torch.dtype) -> None:
    """Autograd's own bits where asked for; otherwise sums in float32, nearer to the truth."""
    torch.manual_seed(0)
    f = MLP(16).to(dtype)
    x = torch.randn(64, 16).to(dtype)
    z0 = torch.zeros_like(x)
    assert_exact_gradients(f, z0, x, max_steps=16, beta=0.5)

    def gradient(**options: object) -> Tensor:
        f.zero_grad()
        solve(f, z0, x, max_steps=16, state="exact", **options).z.float().square().sum().backward()  # type: ignore[arg-type]
        assert f.b.bias.grad is not None and f.b.bias.grad.dtype == dtype
        return f.b.bias.grad.double()

    f64 = MLP(16, dtype=torch.float64)
    f64.load_state_dict({k: v.double() for k, v in f.state_dict().items()})
    solve(f64, z0.double(), x.double(), max_steps=16).z.square().sum().backward()
    assert f64.b.bias.grad is not None
    narrow, wide = (
        (gradient(accumulate=how) - f64.b.bias.grad).norm() for how in ("autograd", "float32")
    )
    assert wide < narrow


class Injected(nn.Module):
    """A cell over a nested state and nested arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 4), nn.Linear(4, 6)

    def forward(self, state: dict[str, Tensor], inputs: dict, scale: float) -> dict[str, Tensor]:
        a, b = state["a"], state["b"]
        first = torch.tanh(self.down(b) * scale + inputs["x"][0])
        return {"a": first, "b": torch.tanh(self.up(a)) + inputs["m"]}


def test_trees_of_tensors() -> None:
    torch.manual_seed(0)
    z0 = {"a": torch.randn(3, 6), "b": torch.randn(3, 4)}
    inputs = {"x": (torch.randn(3, 6, requires_grad=True),), "m": torch.randn(3, 4)}
    f = Injected()
    for adjoint in ("reversible", "hooks", "checkpoint"):
        assert_exact_gradients(f, z0, inputs, 0.5, max_steps=5, beta=0.7, adjoint=adjoint)
    solution = solve(f, z0, inputs, 0.5)
    assert solution.z.keys() == {"a", "b"} and solution.y["b"].shape == (3, 4)


def test_leaves_of_different_dtypes() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 4, requires_grad=True)

    def f(z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, b = z
        return torch.tanh(b.float() @ weight), torch.tanh(a.bfloat16() * 0.5)

    z0 = torch.randn(3, 4), torch.randn(3, 4).bfloat16()
    for adjoint in ("reversible", "hooks"):
        assert_exact_gradients(f, z0, max_steps=6, beta=0.8, adjoint=adjoint)
    # 2N = 4 products, each rounded to bfloat16 itself, at a state that is, and in a sum.
    assert_exact_gradients(f, z0, max_steps=2, state=torch.float32, rtol=4 * 3 * 2.0**-8)


@pytest.mark.parametrize("layout", ["permuted", "channels_last", "expanded", "strided"])
def test_any_layout_of_the_start(layout: str) -> None:
    f, x = cell_and_input("conv")
    zero = torch.randn(2, 8, 5, 5)
    z0 = {
        "permuted": zero.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3),
        "channels_last": zero.to(memory_format=torch.channels_last),
        "expanded": torch.zeros(1, 8, 1, 1).expand(2, 8, 5, 5),
        "strided": torch.randn(2, 8, 5, 10)[..., ::2],
    }[layout]
    assert_exact_gradients(f, z0, x, max_steps=3)
    assert_exact_gradients(f, z0, x, max_steps=2, state=torch.float32)


@pytest.mark.parametrize("adjoint", ["reversible", "hooks"])
def test_sums_inside_f_run_in_the_order_of_the_state(adjoint: str) -> None:
    """What f gets as gradient lies in memory as the state does, whatever the caller's does."""
    torch.manual_seed(0)
    bias = torch.randn(129, 1, requires_grad=True)
    z0 = torch.randn(257, 129).T
    assert_exact_gradients(lambda z: torch.tanh(z + bias), z0, max_steps=3, adjoint=adjoint)


# ---- float states ----------------------------------------------------------------------------


@pytest.mark.parametrize("state", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("beta", [0.3, 0.5, 0.8, 1.2])
@pytest.mark.parametrize("cell", CELLS)
def test_float_states_agree_with_the_unrolled_solve(
    cell: str, beta: float, state: torch.dtype
) -> None:
    """Lipschitz constant and curvature are those of these cells, with some room."""
    steps = 3
    f, x = cell_and_input(cell)
    if state == torch.float64:
        f, x = f.double(), x.detach().double().requires_grad_()
    z0 = torch.zeros_like(x)
    wrt = [x, *f.parameters()]
    want = torch.autograd.grad(loop(f, z0, x, beta=beta, steps=steps)[0].square().sum(), wrt)
    solution = solve(f, z0, x, beta=beta, max_steps=steps, state=state)
    got = torch.autograd.grad(solution.z.square().sum(), wrt)
    back = reconstruction_bound(state, beta, steps, lipschitz=2.0, magnitude=4.0)
    assert solution.stats.reconstruction_error is not None
    assert solution.stats.reconstruction_error <= back
    bound = gradient_bound(state, back, steps, curvature=2.0, terms=64)
    assert_within(got, want, bound)


@pytest.mark.parametrize("y0", [False, True])
def test_float_states_with_a_beta_for_every_step(y0: bool) -> None:
    f, x = cell_and_input("mlp")
    start = torch.randn_like(x).requires_grad_() if y0 else None
    options = {"beta": [0.3, 0.6, 0.4, 0.7], "max_steps": 4, "state": torch.float64}
    bound = beside_bound(4, curvature=2.0, terms=64, magnitude=4.0)
    assert_exact_gradients(f, torch.zeros_like(x), x, y0=start, rtol=bound, **options)


@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "checkpoint"])
@pytest.mark.parametrize("y0", [False, True])
def test_gradcheck_and_gradgradcheck(y0: bool, adjoint: Any) -> None:
    torch.manual_seed(0)
    f = MLP(3, dtype=torch.float64)
    z0, x, start = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    weight = f.a.weight

    def value(z0: Tensor, x: Tensor, start: Tensor, _weight: Tensor) -> tuple[Tensor, Tensor]:
        y = start if y0 else None
        solution = solve(f, z0, x, y0=y, beta=0.4, max_steps=2, adjoint=adjoint)
        return solution.z, solution.y

    inputs = (z0, x, start, weight)
    assert torch.autograd.gradcheck(value, inputs)
    assert torch.autograd.gradgradcheck(value, inputs)


def second_bound(steps: int) -> float:
    """Of a second derivative in float64 at beta 0.5: as many products again on the way back."""
    back = reconstruction_bound(torch.float64, 0.5, steps, lipschitz=2.0, magnitude=4.0)
    return gradient_bound(torch.float64, back, 2 * steps, curvature=2.0, terms=64)


def test_the_second_derivative_does_not_count_a_parameter_twice() -> None:
    """The argument is a function of the parameter that f reads too."""
    f, x = cell_and_input("mlp")
    f, x = f.double(), x.detach().double()
    assert isinstance(f, MLP)

    def second(run) -> tuple[Tensor, ...]:
        start = (x @ f.a.weight.T @ f.a.weight).tanh()
        out = run(start).square().sum()
        grads = torch.autograd.grad(out, list(f.parameters()), create_graph=True)
        return torch.autograd.grad(
            torch.stack([g.square().sum() for g in grads]).sum(), list(f.parameters())
        )

    got = second(lambda s: solve(f, torch.zeros_like(x), s, max_steps=3).z)
    want = second(lambda s: loop(f, torch.zeros_like(x), s, steps=3)[0])
    assert_within(got, want, second_bound(3))


@pytest.mark.parametrize("adjoint", ["reversible", "backprop", "hooks"])
def test_the_second_derivative_of_an_exact_state_is_refused(adjoint: str) -> None:
    f, x = cell_and_input("mlp")
    z = solve(f, torch.zeros_like(x), x, adjoint=adjoint).z  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"state=torch\.float32 or torch\.float64"):
        torch.autograd.grad(z.sum(), x, create_graph=True)


def test_double_backward_through_the_hooks() -> None:
    f, x = cell_and_input("mlp")
    f, x = f.double(), x.detach().double().requires_grad_()

    def second(run) -> Tensor:
        (grad,) = torch.autograd.grad(run().square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    got = second(lambda: solve(f, torch.zeros_like(x), x, max_steps=3, adjoint="hooks").z)
    want = second(lambda: loop(f, torch.zeros_like(x), x, steps=3)[0])
    assert_within([got], [want], second_bound(3))


def test_the_gradient_is_that_of_the_steps_taken() -> None:
    """Not the limit's: with few steps the two differ, with many they agree."""
    torch.manual_seed(0)
    f = MLP(8, dtype=torch.float64)
    with torch.no_grad():
        for p in f.parameters():
            p.mul_(0.5)
    x = torch.randn(4, 8, dtype=torch.float64)
    z0 = torch.zeros_like(x)

    def gradient(steps: int) -> Tensor:
        z = solve(f, z0, x, max_steps=steps, adjoint="backprop").z
        return torch.autograd.grad(z.square().sum(), f.a.weight)[0]

    limit = gradient(60)
    few, many = ((gradient(n) - limit).norm() / limit.norm() for n in (2, 30))
    # A step takes the larger distance of y and z from the limit to 1/2 + L/2 of it, with tanh's
    # slopes of at most 1 in L; a gradient is as far in each of 30 products.
    lipschitz = math.prod(float(torch.linalg.matrix_norm(m.weight.detach(), 2)) for m in (f.a, f.b))
    assert many < 30 * (0.5 + lipschitz / 2) ** 30 < 1e-2 < few


def test_a_block_of_torchs_own() -> None:
    """Without dropout, in eval mode: its fast path under no_grad computes other bits."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0).eval()
    x = torch.randn(2, 5, 16)
    assert_exact_gradients(lambda z, x: layer(z + x), torch.zeros_like(x), x, max_steps=8)
    assert isinstance(Block(), nn.Module)
