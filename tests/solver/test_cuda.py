"""The solver on a GPU: the same promises, and no wait for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.solver.cells import CELLS, MLP, cell_and_input
from tests.solver.composing import GRAPHED, Auxiliary
from torch_revdeq import RangeError, ReconstructionError, RevDEQ, Solution, graphed, solve
from torch_revdeq.testing import assert_exact_gradients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
    pytest.mark.filterwarnings("default"),  # a GPU machine brings a torch of its own choice
]


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    """Some kernels of torch add in an order of their own otherwise."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@contextmanager
def no_waits() -> Iterator[None]:
    """Any wait of the host for the device is an error inside."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_gpu(name: str) -> tuple[torch.nn.Module, Tensor]:
    f, x = cell_and_input(name)
    return f.cuda(), x.detach().cuda().requires_grad_()


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("beta", [0.5, 0.8, 1.2])
@pytest.mark.parametrize("cell", CELLS)
def test_exact_gradients_have_the_bits_of_stored_activations(
    cell: str, beta: float, autocast: bool
) -> None:
    f, x = on_gpu(cell)
    for adjoint in ("reversible", "hooks"):
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            stats = assert_exact_gradients(
                f, torch.zeros_like(x), x, beta=beta, max_steps=12, adjoint=adjoint
            )
        assert stats.reconstruction_error == 0.0


def test_dropout_comes_again() -> None:
    x = torch.randn(64, 16, device="cuda")
    assert_exact_gradients(MLP(p=0.3).cuda(), x, x, max_steps=6)


@pytest.mark.parametrize(
    "watched",
    [{}, {"trace": True}, {"on_step": lambda *_: None}],
    ids=["neither", "trace", "on_step"],
)
def test_training_never_waits(watched: dict[str, Any]) -> None:
    """With an integer frac_bits: the rule reads the device once."""
    f, x = on_gpu("block")

    def train() -> None:
        solution = solve(f, torch.zeros_like(x), x, max_steps=4, frac_bits=18, **watched)
        solution.z.square().sum().backward()
        found = solution.stats.residuals, repr(solution.stats)
        assert (found[0] is not None) == ("trace" in watched)

    train()  # first uses check themselves, and compile
    torch.cuda.synchronize()
    with no_waits():
        train()
    torch.cuda.synchronize()


def bent(rate: Tensor | float, z: Tensor, x: Tensor) -> Tensor:
    """A map of products and sums alone, which round alike everywhere; tanh does not."""
    return rate * z.clamp(-3.0, 3.0) + x


def test_steps_follow_from_the_data_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(4096).cuda()

    def steps(z0: Tensor, x: Tensor) -> int:
        return solve(partial(bent, 0.5), z0, x, max_steps=50, tol=1e-4).stats.steps

    on_cpu = steps(torch.zeros(4096), x.cpu())
    assert {steps(torch.zeros_like(x), x) for _ in range(20)} == {on_cpu + 1}


@pytest.mark.parametrize("state", ["exact", torch.float32], ids=str)
def test_samples_halt_as_on_a_cpu(state: Any) -> None:
    """At the steps that the data say, in a solve that goes on for one check more."""
    torch.manual_seed(0)
    x = torch.randn(64, 32)
    rate = torch.linspace(0.0, 0.8, 64).view(-1, 1)

    def f(z: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        return bent(rate, z, x)

    def solved(x: Tensor, rate: Tensor, tol: float = 1e-2) -> Solution:
        options: dict[str, Any] = {"tol": tol, "max_steps": 40, "per_sample": True}
        return solve(f, torch.zeros_like(x), x, rate, state=state, **options)

    on_cpu = solved(x, rate).stats
    assert on_cpu.sample_steps is not None
    for factor in (1 - 1e-9, 1 + 1e-9):  # a norm that is summed in another order decides nothing
        near = solved(x, rate, 1e-2 * factor).stats.sample_steps
        assert near is not None and torch.equal(near, on_cpu.sample_steps)
    x, rate = x.cuda().requires_grad_(), rate.cuda().requires_grad_()
    stats = solved(x, rate).stats
    assert stats.sample_steps is not None
    assert torch.equal(stats.sample_steps.cpu(), on_cpu.sample_steps)
    assert len(set(on_cpu.sample_steps.tolist())) > 3
    assert stats.steps == on_cpu.steps + 1 and stats.converged
    options: dict[str, Any] = {"tol": 1e-2, "max_steps": 8, "per_sample": True}
    for adjoint in ("reversible", "hooks"):
        options |= {"adjoint": adjoint, "state": state, "beta": 0.4}
        assert_exact_gradients(f, torch.zeros_like(x), x, rate, **options)


def test_a_wrong_gradient_becomes_nan_and_raises_later() -> None:
    f, x = on_gpu("mlp")
    solution = solve(f, torch.zeros_like(x), x)
    next(f.parameters()).data.add_(0.1)
    solution.z.sum().backward()
    assert all(p.grad is not None and p.grad.isnan().all() for p in f.parameters())
    with pytest.raises(ReconstructionError):
        solution.verify()


def test_a_state_out_of_range_becomes_nan_and_raises_later() -> None:
    solution = solve(lambda z: z * 40.0, torch.ones(64, device="cuda"), max_steps=30, frac_bits=20)
    assert solution.z.isnan().all()
    with pytest.raises(RangeError):
        solution.verify()


@pytest.mark.parametrize("state", ["exact", torch.float32], ids=str)
def test_memory_does_not_grow_but_for_the_digits(state: object) -> None:
    torch.manual_seed(0)
    f = MLP(256).cuda()
    x = torch.randn(4096, 256, device="cuda")

    def peak(steps: int) -> int:
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            options = {"max_steps": steps, "beta": 0.5, "state": state, "check": state == "exact"}
            solve(f, torch.zeros_like(x), x, **options).z.sum().backward()
        return torch.cuda.max_memory_allocated() - before

    growth = peak(64) - peak(2)
    per_half_step = 0.14 if state == "exact" else 0.0
    assert growth <= per_half_step * x.numel() * 124 + 0.05 * peak(2)


@pytest.mark.parametrize("state", ["exact", torch.float32], ids=str)
def test_a_layer_as_two_graphs(state: Any) -> None:
    """Replays on new data have the bits of calls without a graph."""
    torch.manual_seed(0)
    f = MLP().cuda()
    options: dict[str, Any] = {"state": state, "max_steps": 4, "rng": "none"}
    if state == "exact":
        options["frac_bits"] = 18
    plain, layer = RevDEQ(f, **options), RevDEQ(f, **options)
    graphed(layer, torch.randn(32, 16, device="cuda", requires_grad=True))
    for _ in range(3):
        x = torch.randn(32, 16, device="cuda", requires_grad=True)
        found = []
        for each in (plain, layer):
            z = each(x)
            grads = torch.autograd.grad(z.square().sum(), [x, *f.parameters()])
            found.append([z.detach().clone(), *(g.clone() for g in grads)])
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b)
        assert layer.stats is not None
        layer.stats.verify()


@pytest.mark.parametrize("name", GRAPHED)
def test_options_in_a_graph(name: str) -> None:
    """The cells of docs/composes.md for which there is no test without a GPU."""
    torch.manual_seed(0)
    kind = Auxiliary if name == "has_aux" else MLP
    f, other = kind().cuda(), kind().cuda()
    other.load_state_dict(f.state_dict())
    options: dict[str, Any] = {"max_steps": 3, "rng": "none", "frac_bits": 18, **GRAPHED[name]}
    x = torch.randn(32, 16, device="cuda", requires_grad=True)
    if name == "residual_mask":
        options["residual_mask"] = torch.arange(32, device="cuda") < 20
    if name == "learned beta":
        beta = torch.tensor(0.4, device="cuda", requires_grad=True)
        with pytest.raises(ValueError, match="beta: expected numbers for an exact state"):
            graphed(RevDEQ(f, beta=beta, **options), x)
        return
    if name == "compiled f":
        f.compile(dynamic=False)
        other.compile(dynamic=False)
    plain, layer = RevDEQ(other, **options), RevDEQ(f, **options)
    on = name == "autocast"
    with torch.autocast("cuda", torch.bfloat16, enabled=on, cache_enabled=False):
        graphed(layer, x)
        for _ in range(2):
            x = torch.randn(32, 16, device="cuda", requires_grad=True)
            found = []
            for each, cell in ((plain, other), (layer, f)):
                z, aux = each(x) if name == "has_aux" else (each(x), {})
                loss = z.square().sum() + sum(t.sum() for t in aux.values())
                grads = torch.autograd.grad(loss, [x, *cell.parameters()])
                found.append([z.detach().clone(), *(g.clone() for g in grads)])
            assert all(map(torch.equal, *found))
            if name == "trace":
                residuals: Any = [each.stats and each.stats.residuals for each in (plain, layer)]
                assert torch.equal(*residuals)
    assert layer.stats is not None
    layer.stats.verify()


def test_a_replay_whose_check_fails() -> None:
    """A number out of range: NaN in the solution, and an error for who asks."""
    layer = RevDEQ(lambda z, x: 0.5 * z + x, max_steps=4, rng="none", frac_bits=20)
    x = torch.randn(32, 16, device="cuda")
    graphed(layer, x)
    assert layer.stats is not None
    assert layer(x).isfinite().all()
    layer.stats.verify()
    assert layer(x + 1e6).isnan().all()
    with pytest.raises(RangeError):
        layer.stats.verify()


def test_a_graph_of_an_f_that_draws_is_refused() -> None:
    layer = RevDEQ(MLP(p=0.3).cuda(), rng="none", frac_bits=18)
    with pytest.raises(RuntimeError, match="f: expected to draw no random numbers"):
        graphed(layer, torch.randn(32, 16, device="cuda"))
