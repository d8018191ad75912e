"""``per_sample``: every sample halts by itself, and has the gradient of the steps that it took."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cells import CELLS, cell_and_input
from torch_revdeq import RangeError, ReconstructionError, RevDEQ, solve
from torch_revdeq.halting import Halting
from torch_revdeq.iteration import Stopping, sample_residuals
from torch_revdeq.testing import assert_exact_gradients

ADJOINTS = ["reversible", "hooks", "checkpoint"]
SAMPLES = 6
TOL = 1e-2


class Rows(nn.Module):
    """Contracts every sample by a factor of its own, `rate`."""

    def __init__(self, d: int = 8, p: float = 0.0) -> None:
        super().__init__()
        self.w, self.drop = nn.Linear(d, d), nn.Dropout(p)
        with torch.no_grad():
            self.w.weight.copy_(torch.linalg.qr(self.w.weight)[0])

    def forward(self, z: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        return torch.tanh(rate * self.w(self.drop(z)) + x)


class Mixing(Rows):
    """The same, with a mean over the samples, as in BatchNorm: no sample is on its own."""

    def forward(self, z: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        out = super().forward(z, x, rate)
        return out - 0.2 * out.mean(0)


CONTRACTIONS = {"rows": Rows, "mixing": Mixing}


def problem(
    name: str = "rows", dtype: torch.dtype = torch.float32, d: int = 8, **options: Any
) -> tuple[Rows, Tensor, Tensor, Tensor]:
    """f, z0, x and the rates, by which the samples arrive one after the other."""
    torch.manual_seed(0)
    f = CONTRACTIONS[name](d, **options).to(dtype)
    x = torch.randn(SAMPLES, d, dtype=dtype)
    rate = torch.linspace(0.1, 0.8, SAMPLES, dtype=dtype).view(-1, 1)
    z0 = torch.tanh(x) + torch.logspace(-2, 0.5, SAMPLES, dtype=dtype).view(-1, 1)
    return f, z0, x.requires_grad_(), rate.requires_grad_()


def looped(
    f: Callable[[Tensor], Tensor], z0: Tensor, beta: float, steps: int, every: int = 1
) -> tuple[Tensor, Tensor, list[int], list[float]]:
    """z, y, and of each sample its steps and residual: the definition, sample by sample."""
    y, z = list(z0), list(z0)
    moves, taken, residuals = [True] * len(z0), [0] * len(z0), [0.0] * len(z0)
    for n in range(steps):
        value = f(torch.stack(z))
        y = [(1 - beta) * a + beta * b if m else a for a, b, m in zip(y, value, moves, strict=True)]
        value = f(torch.stack(y))
        z = [(1 - beta) * a + beta * b if m else a for a, b, m in zip(z, value, moves, strict=True)]
        taken = [t + m for t, m in zip(taken, moves, strict=True)]
        if (n + 1) % every == 0 or n + 1 == steps:
            for i in range(len(z0)):
                if moves[i]:
                    norms = (y[i] - value[i]).norm(), value[i].norm()
                    residuals[i] = (norms[0] / (1e-5 + norms[1])).item()
                    moves[i] = not residuals[i] < TOL
        if not any(moves):
            break
    return torch.stack(z), torch.stack(y), taken, residuals


def spread(stats: Any) -> list[int]:
    """The steps of the samples, which must differ for a test to prove anything."""
    taken = stats.sample_steps.tolist()
    assert len(set(taken)) >= 2, taken
    assert max(taken) == stats.steps
    return taken


# ---- values, steps and gradients by the definition -------------------------------------------


@pytest.mark.parametrize("adjoint", [*ADJOINTS, "backprop"])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("beta", [0.6, 1.2])
@pytest.mark.parametrize("name", CONTRACTIONS)
def test_all_is_that_of_a_loop_over_the_samples(
    name: str, beta: float, every: int, adjoint: Any
) -> None:
    f, z0, x, rate = problem(name, torch.float64)
    z0.requires_grad_()
    options: dict[str, Any] = {"tol": TOL, "check_every": every, "max_steps": 12}
    got = solve(f, z0, x, rate, beta=beta, per_sample=True, adjoint=adjoint, **options)
    z, y, taken, residuals = looped(lambda z: f(z, x, rate), z0, beta, 12, every)
    assert spread(got.stats) == taken
    assert got.stats.residual == pytest.approx(max(residuals), rel=1e-6)
    assert got.stats.converged == (max(residuals) < TOL)
    wrt = [z0, x, rate, *f.parameters()]
    towards = torch.randn(2, *z.shape, dtype=z.dtype)
    grads = [torch.autograd.grad([a, b], wrt, [*towards]) for a, b in ((got.z, got.y), (z, y))]
    for a, b in zip((got.z, got.y, *grads[0]), (z, y, *grads[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_sample_alone_takes_the_same_steps_to_the_same_z() -> None:
    f, z0, x, rate = problem(dtype=torch.float64)
    options: dict[str, Any] = {"beta": 0.7, "tol": TOL, "max_steps": 40}
    together = solve(f, z0, x, rate, per_sample=True, **options)
    taken = spread(together.stats)
    assert together.stats.converged
    for i in range(SAMPLES):
        one = slice(i, i + 1)
        alone = solve(f, z0[one], x[one], rate[one], **options)
        assert alone.stats.steps == taken[i]
        torch.testing.assert_close(together.z[one], alone.z, rtol=1e-12, atol=1e-12)
        (grad,) = torch.autograd.grad(alone.z.sum(), x)
        (part,) = torch.autograd.grad(together.z[one].sum(), x, retain_graph=True)
        torch.testing.assert_close(part, grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", [(5, 300), (3, 17, 40), (7,)], ids=str)
def test_residuals_have_the_same_bits_whatever_the_strides(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    z, f = torch.randn(2, *shape)
    turned = [
        t.mT.contiguous().mT if t.dim() > 1 else t[:, None].repeat(1, 2)[:, 0] for t in (z, f)
    ]
    got = sample_residuals([z], [f])
    assert torch.equal(got, sample_residuals(turned[:1], turned[1:]))
    rows = zip(z.double(), f.double(), strict=True)
    want = torch.stack([(a - b).norm() / (1e-5 + b.norm()) for a, b in rows])
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0.0)


def test_a_sample_that_has_halted_stays_as_it_is() -> None:
    """Bit for bit, also where f goes on to mix it with others."""
    f, z0, x, rate = problem("mixing")
    options: dict[str, Any] = {"tol": TOL, "per_sample": True, "frac_bits": 20}
    end = solve(f, z0, x, rate, max_steps=12, **options)
    for i, taken in enumerate(spread(end.stats)):
        then = solve(f, z0, x, rate, max_steps=taken, **options)
        assert torch.equal(end.z[i], then.z[i]) and torch.equal(end.y[i], then.y[i])


# ---- bit for bit -----------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("beta", [0.5, 0.7, 0.9, 1.2, [0.5, 0.8, 0.6, 1.1] * 3])
@pytest.mark.parametrize("name", CONTRACTIONS)
def test_exact_gradients_have_the_bits_of_stored_activations(
    name: str, beta: Any, adjoint: str
) -> None:
    f, z0, x, rate = problem(name)
    y0 = torch.randn_like(z0).requires_grad_()
    for every, start in ((1, None), (2, y0)):
        stats = assert_exact_gradients(
            f,
            z0,
            x,
            rate,
            y0=start,
            beta=beta,
            max_steps=12,
            tol=TOL,
            check_every=every,
            per_sample=True,
            adjoint=adjoint,
        )
        spread(stats)
        assert stats.reconstruction_error == (None if adjoint == "checkpoint" else 0.0)


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_cells_that_people_use(cell: str, adjoint: str) -> None:
    """Whose samples need not arrive: tol is such that some halt and others do not."""
    f, x = cell_and_input(cell)
    z0 = torch.randn_like(x)
    options: dict[str, Any] = {"beta": 0.6, "adjoint": adjoint, "per_sample": True}
    with torch.no_grad():
        y = solve(f, z0, x, beta=0.6, max_steps=3).y
        value = f(y, x)
        ratios = (y - value).flatten(1).norm(dim=1) / value.flatten(1).norm(dim=1)
    tol = float(ratios.sort().values[:2].mean())
    with torch.autocast("cpu", torch.bfloat16, enabled=cell != "conv"):
        stats = assert_exact_gradients(f, z0, x, tol=tol, max_steps=6, **options)
    spread(stats)
    assert stats.reconstruction_error == (None if adjoint == "checkpoint" else 0.0)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_trees_of_tensors(adjoint: str) -> None:
    """The largest residual of its leaves counts for a sample."""
    f, z0, x, rate = problem()

    def pair(z: dict[str, Tensor], x: Tensor, rate: Tensor) -> dict[str, Tensor]:
        a = f(z["b"].float(), x, rate)
        return {"a": 0.1 * a.view(SAMPLES, 2, 4), "b": a + z["a"].flatten(1).bfloat16()}

    start = {"a": torch.zeros(SAMPLES, 2, 4), "b": z0.bfloat16()}
    options: dict[str, Any] = {"tol": 0.05, "max_steps": 9, "per_sample": True}
    spread(assert_exact_gradients(pair, start, x, rate, beta=0.7, adjoint=adjoint, **options))

    def apart(z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return 0.5 * z[0] + 1.0, 0.25 * z[1] + 1.0

    near, far = torch.tensor([[2.0], [9.0]]), torch.tensor([9.0, 4 / 3])
    both = solve(apart, (near, far), tol=0.05, max_steps=40, per_sample=True).stats
    alone = [
        solve(lambda z, i=i: apart((z, z))[i], start, tol=0.05, max_steps=40).stats.steps
        for i, start in ((1, far[:1]), (0, near[1:]))
    ]
    assert alone[0] != alone[1]
    assert both.sample_steps is not None and both.sample_steps.tolist() == alone


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("rng", ["auto", "shared"])
def test_dropout(rng: str, adjoint: str) -> None:
    f, z0, x, rate = problem("mixing", p=0.1)
    options: dict[str, Any] = {"tol": 0.2, "max_steps": 9, "beta": 0.7, "per_sample": True}
    spread(assert_exact_gradients(f, z0, x, rate, rng=rng, adjoint=adjoint, **options))


@pytest.mark.parametrize("count", [1, 5, 100])
def test_kept_graphs(count: int) -> None:
    f, z0, x, rate = problem("mixing")
    options: dict[str, Any] = {"tol": TOL, "max_steps": 11, "beta": 0.8, "per_sample": True}
    spread(assert_exact_gradients(f, z0, x, rate, store_last=count, **options))
    gradients = []
    for kept in (count, 0):
        z = solve(f, z0, x, rate, store_last=kept, state=torch.float64, **options).z
        gradients.append(torch.autograd.grad(z.square().sum(), [x, rate, *f.parameters()]))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_beta_that_learns(adjoint: Any) -> None:
    f, z0, x, rate = problem("mixing")

    def gradients(adjoint: Any, **options: Any) -> tuple[Tensor, ...]:
        beta = torch.tensor(0.7, requires_grad=True, dtype=z0.dtype)
        how: dict[str, Any] = {"tol": TOL, "max_steps": 9, "per_sample": True, **options}
        solution = solve(f, z0, x, rate, beta=beta, adjoint=adjoint, **how)
        spread(solution.stats)
        loss = solution.z.square().sum() + solution.y.sum()
        return torch.autograd.grad(loss, [beta, x, rate, *f.parameters()])

    assert all(map(torch.equal, gradients(adjoint), gradients("backprop")))
    if adjoint == "reversible":
        got, want = (gradients(how, state=torch.float64) for how in (adjoint, "backprop"))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_batch_that_is_not_the_first_in_memory() -> None:
    """The same residuals, whatever the strides, and sums in f in the order of the state."""
    f, z0, x, rate = problem("mixing")
    options: dict[str, Any] = {"tol": TOL, "max_steps": 9, "per_sample": True}
    plain = assert_exact_gradients(f, z0, x, rate, **options)
    for adjoint in ("reversible", "hooks"):
        turned = assert_exact_gradients(f, z0.T.contiguous().T, x, rate, adjoint=adjoint, **options)
        assert spread(turned) == spread(plain)


# ---- float states ----------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize(
    ("state", "rtol"),
    [(torch.float64, 1e-6), (torch.float32, 1e-3), (torch.bfloat16, 0.1), (torch.float16, 0.03)],
    ids=str,
)
def test_float_states(state: torch.dtype, rtol: float, adjoint: str) -> None:
    dtype = state if state in (torch.bfloat16, torch.float16) else torch.float32
    f, z0, x, rate = problem("mixing")
    f, z0, rate = f.to(dtype), z0.to(dtype), rate.detach().to(dtype)
    x = x.detach().to(dtype).requires_grad_()
    options: dict[str, Any] = {"tol": 0.1, "max_steps": 6, "beta": 0.4, "per_sample": True}
    stats = assert_exact_gradients(
        f, z0, x, rate, rtol=rtol, state=state, adjoint=adjoint, **options
    )
    spread(stats)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("adjoint", ["reversible", "hooks", "backprop"])
def test_gradcheck_and_gradgradcheck(adjoint: Any) -> None:
    """Finite differences, of first and second order, do not move the steps at which tol is met."""
    f, z0, x, rate = problem("mixing", torch.float64, d=2)
    weight, beta = f.w.weight, torch.tensor(0.4, dtype=torch.float64)
    options: dict[str, Any] = {"tol": 0.1, "max_steps": 5, "per_sample": True}
    if adjoint != "hooks":
        beta.requires_grad_()

    def value(z0: Tensor, x: Tensor, rate: Tensor, beta: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        solution = solve(f, z0, x, rate, beta=beta, adjoint=adjoint, **options)
        spread(solution.stats)
        return solution.z, solution.y

    inputs = (z0.requires_grad_(), x, rate, beta, weight)
    assert torch.autograd.gradcheck(value, inputs)
    if adjoint == "backprop":  # f reads the weight itself, not what it is checked with
        passed = partial(value, _=weight)
        assert torch.autograd.gradcheck(passed, inputs[:-1], check_forward_ad=True)
    if adjoint != "hooks":  # which refuses what it saved and has overwritten since
        assert torch.autograd.gradgradcheck(value, inputs)


def test_second_derivatives_follow_the_record() -> None:
    """Not a new judgement, which would find no tol."""
    f, z0, x, rate = problem("mixing", torch.float64)

    def second(run: Callable[[], Tensor]) -> Tensor:
        (grad,) = torch.autograd.grad(run().square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    options: dict[str, Any] = {"tol": TOL, "max_steps": 8, "per_sample": True}
    want = second(lambda: looped(lambda z: f(z, x, rate), z0, 0.5, 8)[0])
    for adjoint in ("reversible", "hooks", "backprop"):
        got = second(lambda a=adjoint: solve(f, z0, x, rate, adjoint=a, **options).z)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


# ---- another device --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "beta", [0.7, torch.tensor(0.7, requires_grad=True)], ids=["0.7", "learns"]
)
def test_on_another_device_masks_stand_in_for_a_look(
    beta: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host does not know in the forward pass whether all move, and the end comes a check later.

    Steps in which nothing moves change nothing, so that all bits are those of a CPU.
    """
    f, z0, x, rate = problem("mixing")
    options: dict[str, Any] = {"tol": TOL, "max_steps": 40, "per_sample": True, "beta": beta}

    def observed(adjoint: Any) -> tuple[Any, tuple[Tensor, ...]]:
        solution = solve(f, z0, x, rate, adjoint=adjoint, **options)
        loss = solution.z.square().sum() + solution.y.sum()
        wrt = [x, rate, *f.parameters()]
        grads = torch.autograd.grad(loss, wrt)
        return solution.stats, (solution.z, solution.y, *grads)

    now, want = observed("backprop")
    begin, judge = Stopping.__init__, Halting.__init__

    def lagging(self: Stopping, *args: Any) -> None:
        begin(self, *args)
        self.lag = 1

    def blind(self: Halting, *args: Any) -> None:
        judge(self, *args)
        self.looks = False

    monkeypatch.setattr(Stopping, "__init__", lagging)
    monkeypatch.setattr(Halting, "__init__", blind)
    for adjoint in ("reversible", "hooks", "checkpoint", "backprop"):
        later, got = observed(adjoint)
        assert later.steps == now.steps + 1
        assert later.sample_steps.tolist() == spread(now)
        assert later.converged and later.residual == now.residual
        assert all(map(torch.equal, got, want))


# ---- numbers that are none -------------------------------------------------------------------


def test_nan_halts_nothing() -> None:
    def f(z: Tensor) -> Tensor:
        return 0.5 * z + torch.tensor([[1.0], [float("nan")], [2.0]])

    options: dict[str, Any] = {"tol": 1e-3, "max_steps": 25, "state": torch.float32}
    solution = solve(f, torch.zeros(3, 2), per_sample=True, **options)
    taken = solution.stats.sample_steps
    assert taken is not None and taken[1] == 25 == solution.stats.steps
    assert taken[0] == taken[2] < 25
    assert solution.z[::2].isfinite().all() and solution.z[1].isnan().all()
    assert not solution.stats.converged


@pytest.mark.parametrize("adjoint", [*ADJOINTS, "backprop"])
@pytest.mark.parametrize("state", ["exact", torch.float32], ids=str)
@pytest.mark.parametrize("worst", [1e9, float("inf"), float("nan")])
def test_what_f_makes_of_a_sample_that_has_halted_is_not_used(
    worst: float, state: Any, adjoint: Any
) -> None:
    """It may leave the range, or be no number: neither the state nor a gradient sees it."""
    x = torch.tensor([[0.0], [0.3]])
    seen: list[bool] = []

    def f(z: Tensor, w: Tensor) -> Tensor:
        pit = ((z - 0.4).abs() < 0.01) & (x == 0.0)  # where the z of the first sample halts
        seen.append(bool(pit.any()))
        return torch.where(pit, worst, w * z * (z - 1.0) + x)

    def observed(adjoint: Any) -> tuple[Tensor, ...]:
        w = torch.tensor(0.5, requires_grad=True)
        learned = adjoint != "hooks" or state == "exact"
        beta = torch.tensor(0.6, requires_grad=learned)
        z0, y0 = torch.tensor([[1.0], [0.5]]), torch.tensor([[0.0], [0.5]])
        options: dict[str, Any] = {"tol": 1e-6, "max_steps": 9, "per_sample": True, "state": state}
        bits = 20 if state == "exact" else "auto"
        solution = solve(f, z0, w, y0=y0, beta=beta, adjoint=adjoint, frac_bits=bits, **options)
        assert spread(solution.stats) == [1, 9]
        wrt = [w, beta] if learned else [w]
        return solution.z.detach(), *torch.autograd.grad(solution.z.sum(), wrt)

    got = observed(adjoint)
    assert any(seen) and all(t.isfinite().all() for t in got)
    assert got[0][0] == pytest.approx(0.4, abs=1e-6) and got[1] != 0
    for a, b in zip(got, observed("backprop"), strict=False):
        assert torch.equal(a, b) if state == "exact" else torch.allclose(a, b, rtol=1e-3)


def test_a_sample_that_moves_out_of_the_range_raises() -> None:
    def f(z: Tensor) -> Tensor:
        return z * torch.tensor([[1.0], [40.0]])

    with pytest.raises(RangeError):
        solve(f, torch.ones(2, 1), max_steps=9, tol=1e-3, per_sample=True, frac_bits=20)


@pytest.mark.parametrize("adjoint", ["reversible", "hooks"])
def test_a_wrong_way_back_is_noticed(adjoint: Any) -> None:
    f, z0, x, rate = problem()
    z = solve(f, z0, x, rate, tol=TOL, per_sample=True, adjoint=adjoint).z
    next(f.parameters()).data.add_(0.1)
    with pytest.raises(ReconstructionError):
        z.sum().backward()


# ---- statistics, shapes, refusals ------------------------------------------------------------


def test_statistics() -> None:
    f, z0, x, rate = problem()
    options: dict[str, Any] = {"tol": TOL, "beta": 0.9, "max_steps": 20}
    stats = solve(f, z0, x, rate, per_sample=True, **options).stats
    taken = stats.sample_steps
    assert taken is not None and taken.dtype == torch.int64 and taken.shape == (SAMPLES,)
    assert stats.converged and 0 < stats.residual < TOL
    for other in (copy.copy(stats), copy.deepcopy(stats), pickle.loads(pickle.dumps(stats))):
        assert other.sample_steps is not None and torch.equal(other.sample_steps, taken)
        assert other.residual == stats.residual
    few = solve(f, z0, x, rate, per_sample=True, **{**options, "max_steps": 3}).stats
    assert not few.converged and few.residual > TOL and max(spread(few)) == 3
    assert solve(f, z0, x, rate, **options).stats.sample_steps is None
    for without_grad in (torch.no_grad, torch.inference_mode):
        with without_grad():
            assert spread(solve(f, z0, x, rate, per_sample=True, **options).stats) == spread(stats)
    none = solve(f, z0, x, rate, per_sample=True, **{**options, "tol": 0.0}).stats
    assert none.sample_steps is not None and none.sample_steps.tolist() == [20] * SAMPLES


def test_where_none_halts_the_bits_are_those_without() -> None:
    f, z0, x, rate = problem()
    for state in ("exact", torch.float32):
        results = []
        extra: dict[str, Any]
        for extra in ({}, {"tol": 1e-12, "per_sample": True}):
            z = solve(f, z0, x, rate, max_steps=5, state=state, **extra).z
            results.append((z, *torch.autograd.grad(z.square().sum(), [x, *f.parameters()])))
        assert all(map(torch.equal, *results))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (4,), (2, 3, 2)], ids=str)
def test_any_shape_of_a_sample(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    z0 = torch.randn(shape, requires_grad=True)
    solution = solve(lambda z: 0.5 * z + 1.0, z0, max_steps=30, tol=1e-3, per_sample=True)
    assert solution.stats.sample_steps is not None and solution.stats.converged
    assert solution.stats.sample_steps.shape == shape[:1]
    assert torch.allclose(solution.z, torch.full(shape, 2.0), atol=0.05)
    solution.z.sum().backward()
    assert z0.grad is not None and z0.grad.shape == shape


def test_a_layer() -> None:
    f, z0, x, rate = problem()
    layer = RevDEQ(f, tol=TOL, max_steps=20, beta=0.9, per_sample=True)
    layer(x, rate, z0=z0).sum().backward()
    assert layer.stats is not None and layer.stats.reconstruction_error == 0.0
    spread(layer.stats)
    assert "per_sample=True" in repr(layer)


@pytest.mark.parametrize(
    ("message", "z0", "options"),
    [
        ("per_sample: expected with a tol.*pass the residual", torch.zeros(3), {"tol": None}),
        (r"per_sample: expected leaves .* got shapes \(\); put", torch.zeros(()), {}),
        (
            r"per_sample: .* got shapes \(3, 2\), \(2, 3\)",
            [torch.zeros(3, 2), torch.zeros(2, 3)],
            {},
        ),
        ("per_sample: .*batch first", [torch.zeros(3, 2), torch.zeros(())], {}),
        ("check_every: expected", torch.zeros(3), {"check_every": 0}),
        ("save_at: expected without a tol", torch.zeros(3), {"save_at": [1]}),
        ("backward_steps: expected without a tol", torch.zeros(3), {"backward_steps": 1}),
    ],
)
def test_errors(message: str, z0: Any, options: dict[str, Any]) -> None:
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=message):
            solve(lambda z: z, z0, **{"tol": 1e-3, "per_sample": True, **options})


def test_a_transform_is_refused() -> None:
    def loss(z0: Tensor) -> Tensor:
        options: dict[str, Any] = {"tol": 1e-3, "per_sample": True, "adjoint": "backprop"}
        return solve(lambda z: 0.5 * z, z0, state=torch.float32, **options).z.sum()

    with pytest.raises(RuntimeError, match="tol: expected None inside a transform"):
        torch.func.grad(loss)(torch.ones(3))
