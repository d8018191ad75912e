"""The peers in the benchmark of the solver: what they compute. JAX: test_jax_peer.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench import __main__ as command
from bench.core.session import Record
from bench.solver import measure, methods, models, peers
from bench.solver.methods import Run
from revdeq_kernels.ops.cell import choice as cell_choice
from tests.bench.solver_tolerances import gradient_error, path_of, stored_error, walked_error
from tests.bench.tiny import TINY

CPU = torch.device("cpu")
BY_NAME = {method.name: method for method in peers.PEERS}
NAIVE = ("naive float32", "naive float64")
QUICK = ("--quick", "--device", "cpu", "--threads", "1", "--samples", "1", "--only", "peers")


pytestmark = pytest.mark.usefixtures("one_thread")


class WholeNumbers(nn.Module):
    """relu((z + x) A) B with whole numbers: a solve of a few steps rounds nothing in float32."""

    def __init__(self) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(0)
        a, b = (torch.randint(-1, 2, (4, 4), generator=drawn).float() for _ in range(2))
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.relu((z + x) @ self.a) @ self.b


def without_roundings() -> models.Model:
    drawn = torch.Generator().manual_seed(1)
    x, cotangent = (torch.randint(-2, 3, (6, 4), generator=drawn).float() for _ in range(2))
    return models.Model("whole numbers", WholeNumbers(), torch.zeros(6, 4), x, cotangent)


def error_of(name: str, model: models.Model, beta: float, steps: int) -> float:
    """How far a provider's gradient is from the float64 one of the solve."""
    reference = methods.reference_gradients(model, beta, steps)
    grads = Run(BY_NAME[name], model, beta, steps).gradients()
    return measure.relative_distance(grads, reference)


def test_the_linear_cell_is_taken_in_one_call_where_there_is_one() -> None:
    model = models.make("cell", TINY, CPU)
    stats = Run(BY_NAME["reversible exact"], model, 0.5, 2).gradients_and_stats()[1]
    assert stats is not None
    one_call = cell_choice.fastest(model.f.get_parameter("W"), "tanh")
    assert stats.route.split(":")[0] == (one_call or "solver")


# ---- loops of a user ---------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.5, 0.75])
@pytest.mark.parametrize("name", ["lerp loop", "torch checkpoint", *NAIVE, "reversible float32"])
def test_the_loops_have_the_gradient_of_the_solve(name: str, beta: float) -> None:
    """All of its digits, where no step and no inverse rounds."""
    model = without_roundings()
    reference = methods.reference_gradients(model, beta, 2)
    grads = Run(BY_NAME[name], model, beta, 2).gradients()
    for got, want in zip(grads, reference, strict=True):
        assert torch.equal(got.double(), want) and want.all()


def test_checkpoint_computes_what_the_loop_computes() -> None:
    model = models.make("mlp", TINY, CPU)
    names = "lerp loop", "torch checkpoint"
    loop, stored = (Run(BY_NAME[name], model, 0.5, 3).gradients() for name in names)
    assert all(map(torch.equal, loop, stored))


@pytest.mark.parametrize("name", ["mlp", "block"])
def test_the_naive_loop_is_differentiated_in_float64_to_float64(name: str) -> None:
    """So that what it loses in float32 is roundings, and no error of its backward pass."""
    model = models.make(name, TINY, CPU).to(torch.float64)
    path = path_of(model, 0.8, 3)
    stored = stored_error(model, path, 0.8)
    states = walked_error(model, path, 0.8, torch.float64, stored=stored)
    assert error_of("naive float64", model, 0.8, 3) <= gradient_error(model, path, states)


def test_a_naive_float32_state_is_lost_where_an_exact_one_is_not() -> None:
    """Lost is more than the roundings of who keeps the states, in float32 or on the grid."""
    model = models.make("block", TINY, CPU)
    path = path_of(model, 0.9, 8)
    kept, on_grid = (
        gradient_error(model, path, stored_error(model, path, 0.9, frac_bits=bits))
        for bits in (None, 20)
    )
    assert error_of("lerp loop", model, 0.9, 8) <= kept
    assert error_of("reversible exact", model, 0.9, 8) <= on_grid
    assert error_of("naive float32", model, 0.9, 8) > on_grid


def test_gradients_of_inputs_are_not_asked_for_and_f_is_evaluated_once_on_the_way_back() -> None:
    model, calls = models.make("mlp", TINY, CPU), []
    model.f.register_forward_hook(lambda *_: calls.append(1))
    Run(BY_NAME["naive float32"], model, 0.5, 5).gradients()
    assert len(calls) == 2 * 5 + 2 * 5


# ---- torchdeq ----------------------------------------------------------------------------------


class Halved(nn.Module):
    """w z + x, which halves distances where w is 1/2, and forgets z where w is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, 0.5, 0.0, 0.5]))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.w * z + x


def halved() -> models.Model:
    x, cotangent = torch.tensor([[1.0, 2.0, 4.0, -3.0], [1.0, -1.0, 2.0, 5.0]])
    return models.Model("halved", Halved(), torch.zeros(4), x, cotangent)


@pytest.mark.parametrize("name", ["torchdeq IFT", "torchdeq phantom"])
def test_torchdeq_has_the_gradient_of_the_limit(name: str) -> None:
    """All of its digits: after 80 evaluations z = x / (1 - w), the limit in float64.

    There d z / d w = z / (1 - w); a phantom gradient has 1 + w + ... + w^4 for 1 / (1 - w).
    """
    pytest.importorskip("torchdeq", reason="torchdeq is not installed")
    model = halved().to(torch.float64)
    (w,) = (parameter.detach() for parameter in model.parameters)
    product = 1 / (1 - w) if name == "torchdeq IFT" else sum(w**k for k in range(5))
    (got,) = Run(BY_NAME[name], model, 0.5, 40).gradients()
    assert torch.equal(got, model.cotangent * product * model.x / (1 - w))


@pytest.mark.parametrize("name", ["torchdeq IFT", "torchdeq phantom"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_torchdeq_takes_its_gradient_from_2n_evaluations(name: str, steps: int) -> None:
    """In numbers that nothing rounds: IFT by 2N products, a phantom by the last evaluations."""
    pytest.importorskip("torchdeq", reason="torchdeq is not installed")
    model = halved()
    (w,) = model.parameters
    recorded = 1 if name == "torchdeq IFT" else min(5, 2 * steps - 1)
    z = model.z0
    with torch.no_grad():
        for _ in range(2 * steps - recorded):
            z = model.f(z, model.x)
        seed = model.cotangent
        if name == "torchdeq IFT":
            seed = model.z0
            for _ in range(2 * steps):
                seed = w * seed + model.cotangent
    for _ in range(recorded):
        z = model.f(z, model.x)
    (want,) = torch.autograd.grad(z, w, seed)
    (got,) = Run(BY_NAME[name], model, 0.5, steps).gradients()
    assert torch.equal(got, want)


@pytest.mark.parametrize("name", ["torchdeq IFT", "torchdeq phantom"])
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_torchdeq_evaluates_f_as_often(name: str, steps: int) -> None:
    pytest.importorskip("torchdeq", reason="torchdeq is not installed")
    model, calls = halved(), []
    model.f.register_forward_hook(lambda *_: calls.append(1))
    Run(BY_NAME[name], model, 0.5, steps).forward()
    assert len(calls) == 2 * steps


LIMITS = ("torchdeq Broyden", "fixed_point Broyden", "fixed_point Anderson")


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("steps", [2, 8])
def test_other_ways_to_the_limit_evaluate_f_as_often(name: str, steps: int) -> None:
    pytest.importorskip("torchdeq", reason="torchdeq is not installed")
    model, calls = halved(), []
    model.f.register_forward_hook(lambda *_: calls.append(1))
    Run(BY_NAME[name], model, 0.5, steps).forward()
    assert len(calls) == 2 * steps


@pytest.mark.parametrize("name", LIMITS)
def test_other_ways_to_the_limit_have_its_phantom_gradient(name: str) -> None:
    """With z = x / (1 - w), and 1 + w + ... + w^4 for 1 / (1 - w), as above."""
    pytest.importorskip("torchdeq", reason="torchdeq is not installed")
    model = halved().to(torch.float64)
    (w,) = (parameter.detach() for parameter in model.parameters)
    want = model.cotangent * sum(w**k for k in range(5)) * model.x / (1 - w)
    (got,) = Run(BY_NAME[name], model, 0.5, 40).gradients()
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_without_torchdeq_the_row_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torchdeq", None)
    peers._torchdeq.cache_clear()
    chosen = ("--models", "mlp", "--depths", "1", "--providers", "torchdeq")
    assert command.main([*QUICK, *chosen, "--out", str(tmp_path)]) == 0
    records = read(tmp_path)
    assert {name: r["skipped"] is not None for name, r in records.items()} == {
        "lerp loop": False,
        "torchdeq IFT": True,
        "torchdeq phantom": True,
        "torchdeq Broyden": True,
    }
    assert "pip install torchdeq" in records["torchdeq IFT"]["skipped"]
    assert records["torchdeq IFT"]["refused"] is None
    printed = capsys.readouterr().out
    assert printed.count("pip install torchdeq") == 1
    absent = "torchdeq IFT, torchdeq phantom, torchdeq Broyden"
    assert f"skipped: {absent}: torchdeq cannot be imported" in printed
    assert len([line for line in printed.splitlines() if line.rstrip().endswith(" skipped")]) == 3


def read(folder: Path) -> dict[str, Record]:
    lines = (folder / "solve.peers.jsonl").read_text(encoding="utf-8").splitlines()
    return {record["provider"]: record for record in map(json.loads, lines)}


def test_every_peer_is_a_method_of_its_own() -> None:
    assert len(BY_NAME) == len(peers.PEERS)
    assert methods.LOOP in peers.PEERS
