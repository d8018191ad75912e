"""torch_revdeq.plot: the data that is drawn, the files, and what is left as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from torch import Tensor, nn

from torch_revdeq import Picard, RevDEQ, Solution, Stats, fixed_point, plot, solve
from torch_revdeq.plot.measured import EXACT, STORED
from torch_revdeq.testing import assert_exact_gradients

MAGIC = {".png": b"\x89PNG\r\n", ".svg": b"<?xml", ".pdf": b"%PDF"}
FLOATS: dict[str, Any] = {"state": torch.float32, "beta": 0.9}
FLOAT = "reversible, float32 state"


class Cell(nn.Module):
    """Far from contractive, with running statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(16, 16)
        self.norm = nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(0.1)
        with torch.no_grad():
            self.linear.weight *= 3

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.dropout(torch.tanh(self.norm(self.linear(z) + x)))


def solved(**options: Any) -> Solution:
    torch.manual_seed(0)
    weight = 0.5 * torch.eye(6) + 0.05 * torch.randn(6, 6)
    x = torch.randn(4, 6) * torch.tensor([[1.0], [1.0], [0.1], [3.0]])
    defaults = {"max_steps": 12, "trace": True}
    return solve(lambda z, x: torch.tanh(z @ weight + x), 0 * x, x, **{**defaults, **options})


def line(figure: Figure, label: str) -> tuple[list[float], list[float]]:
    """The numbers of a line."""
    (found,) = [item for item in figure.axes[0].lines if item.get_label() == label]
    return [float(v) for v in found.get_xdata()], [float(v) for v in found.get_ydata()]  # type: ignore[union-attr]


# ---- residuals -------------------------------------------------------------------------------


def test_a_trace_is_a_line() -> None:
    solution = solved(tol=1e-3)
    assert solution.stats.residuals is not None
    for solve_or_stats in (solution, solution.stats, [solution], {"one": solution.stats}):
        figure = plot.residuals(solve_or_stats)
        name = {Solution: "residual", Stats: "residual", list: "solve 1", dict: "one"}
        steps, values = line(figure, name[type(solve_or_stats)])
        assert steps == list(range(1, solution.stats.steps + 1))
        assert values == solution.stats.residuals.tolist()
        assert line(figure, "tol = 0.001")[1] == [1e-3, 1e-3]
        assert figure.axes[0].get_yscale() == "log"


def test_samples_are_a_median_in_a_band() -> None:
    stats = solved(tol=1e-4, per_sample=True).stats
    residuals = stats.residuals
    assert residuals is not None and residuals.shape == (stats.steps, 4)
    figure = plot.residuals(stats)
    assert line(figure, "residual, median")[1] == residuals.median(1).values.tolist()
    (band,) = [item for item in figure.axes[0].collections if isinstance(item, PolyCollection)]
    corners = {(float(x), float(y)) for x, y in band.get_paths()[0].vertices}  # type: ignore[union-attr]
    for step, (low, high) in enumerate(zip(residuals.amin(1), residuals.amax(1), strict=True), 1):
        assert {(step, float(low)), (step, float(high))} <= corners


def test_what_has_no_logarithm_is_left_out() -> None:
    stats = solved().stats
    values = torch.tensor([1.0, float("nan"), 0.1, 0.0, 0.01], dtype=torch.float64)
    stats._residuals = values
    assert line(plot.residuals(stats), "residual") == ([1, 3, 5], [1.0, 0.1, 0.01])
    stats._residuals = torch.stack([values, values.roll(1)], 1)
    steps, middle = line(plot.residuals(stats), "residual, median")
    assert (steps, middle) == ([1, 2, 3, 4, 5], [0.01, 1.0, 0.1, 0.1, 0.01])


def test_layers_and_limits_are_drawn_too() -> None:
    layer, x = RevDEQ(lambda z, x: 0.5 * z + x, max_steps=3, trace=True), torch.randn(4, 6)
    f, start = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), torch.zeros(4, 6)
    layer(x)
    limit = fixed_point(f, start, solver=Picard(), max_steps=5, tol=1e-1, trace=True)
    figure = plot.residuals({"layer": layer, "limit": limit, "stats": limit.stats})
    assert layer.stats is not None and limit.stats.residuals is not None
    assert line(figure, "layer")[1] == layer.stats.residuals.tolist()  # type: ignore[union-attr]
    assert line(figure, "limit")[1] == line(figure, "stats")[1] == limit.stats.residuals.tolist()


def test_a_solve_that_diverged_is_marked_where_it_ended() -> None:
    diverged = solve(lambda z: 3 * z * z + 5, torch.ones(3), max_steps=9, trace=True, **FLOATS)
    trace = diverged.stats.residuals
    assert trace is not None and trace[:2].isfinite().all() and trace[2:].isnan().all()
    figure = plot.residuals({"a": diverged, "b": solved(max_steps=9)})
    ax = figure.axes[0]
    assert line(figure, "a: diverged after step 2") == ([2], [float(trace[1])])
    assert [t.get_text() for t in ax.get_legend().get_texts()][-1] == "b"  # type: ignore[union-attr]
    at_once = solve(lambda z: z / 0, torch.ones(3), max_steps=2, trace=True, **FLOATS)
    assert line(plot.residuals(at_once), "residual: diverged after step 0") == ([], [])


def test_the_scale_is_a_decade_at_least_and_has_all_steps() -> None:
    still = solve(lambda z: z, torch.ones(3), max_steps=4, trace=True)
    ax = Figure().subplots()
    figure = plot.residuals(still, ax=ax)
    assert line(figure, "residual: 0 in every step") == ([], [])
    assert ax.get_xlim()[0] <= 1 and ax.get_xlim()[1] >= 4 and ax.get_legend() is not None
    for steps in (1, 2):
        one = plot.residuals(solved(max_steps=steps))
        (low, high), (left, right) = one.axes[0].get_ylim(), one.axes[0].get_xlim()
        assert high >= 10 * low > 0 and right - left >= 1
        ticks = [tick for tick in one.axes[0].get_xticks() if left <= tick <= right]
        assert ticks == list(range(1, steps + 1))
    plot.residuals(solved(max_steps=12), ax=ax)  # and those of a later call
    values = line(ax.figure, "residual")[1]  # type: ignore[arg-type]
    assert ax.get_ylim()[0] < min(values) and max(values) < ax.get_ylim()[1]


def test_many_solves_are_told_apart() -> None:
    many = [solved(max_steps=3)] * 8 + [solved(max_steps=3, tol=1e-9, per_sample=True)] * 2
    figure = plot.residuals(many)
    lines = figure.axes[0].lines[:10]
    assert len({(item.get_color(), item.get_linestyle()) for item in lines}) == 10
    figure.draw_without_rendering()
    legend = figure.axes[0].get_legend()
    assert legend is not None and len(legend.get_texts()) == 10 + 1 + 1  # one band, one tol
    assert legend.get_window_extent().x0 >= figure.axes[0].get_window_extent().x1
    assert legend.get_window_extent().x1 <= figure.bbox.x1


def test_axes_of_ones_own() -> None:
    ax, other = Figure().subplots(1, 2)
    figure = plot.residuals({"a": solved(), "b": solved(beta=0.8)}, ax=ax)
    assert figure is ax.figure and not other.lines
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


@pytest.mark.parametrize(
    ("solves", "error", "message"),
    [
        ([], ValueError, "solves: expected at least one"),
        (3.0, TypeError, "solves: expected Stats or Solution, got float for 'residual'"),
        (
            None,
            TypeError,
            "got NoneType for 'residual'; pass the solution, its stats, or",
        ),
        (nn.Linear(2, 2), TypeError, "got Linear for 'residual'"),
        (RevDEQ(nn.Linear(2, 2)), ValueError, "expected a layer that was called, got a RevDEQ"),
        ([3.0], TypeError, "solves: expected Stats or Solution, got float for 'solve 1'"),
        ("stats", TypeError, "got str for 'solve 1'"),
        ({"a": "untraced"}, ValueError, "got none for 'a'; solve with trace=True"),
    ],
)
def test_what_cannot_be_drawn(solves: Any, error: type[Exception], message: str) -> None:
    if isinstance(solves, dict):
        solves = {"a": solved(trace=False)}
    with pytest.raises(error, match=message):
        plot.residuals(solves)


@pytest.mark.parametrize("suffix", MAGIC)
def test_files(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"figure{suffix}"
    plot.residuals(solved(), path=path)
    assert path.read_bytes().startswith(MAGIC[suffix]) and path.stat().st_size > 2000


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    """They are refused before anything is computed."""

    def unused(z: Tensor) -> Tensor:
        raise AssertionError

    for path, message in (
        ("x.bmp", r"ends in .png, .svg, .pdf, got x.bmp"),
        ("no/x.png", "folder"),
    ):
        with pytest.raises(ValueError, match=message):
            plot.depth(unused, torch.zeros(2), path=tmp_path / path if "/" in path else path)
        with pytest.raises(ValueError, match=message):
            plot.residuals(solved(), path=tmp_path / path if "/" in path else path)


# ---- depth -----------------------------------------------------------------------------------


def test_depth(tmp_path: Path) -> None:
    """Memory grows where activations are stored; the error where a float state is reversed."""
    f, x = Cell().eval(), torch.randn(64, 16)
    found = plot.depth(f, torch.zeros(64, 16), x, steps=(16, 1, 4), path=tmp_path / "x.png")
    assert found.steps == (1, 4, 16)
    assert set(found.memory) == set(found.error) == set(found.raises) == {EXACT, FLOAT, STORED}
    stored, reversible = found.memory[STORED], found.memory[EXACT]
    assert stored[2] > 8 * stored[0]  # type: ignore[operator]
    assert reversible[2] < 1.5 * reversible[0]  # type: ignore[operator]
    assert max(found.error[EXACT] + found.error[STORED]) < 1e-4
    assert found.error[FLOAT][0] < 1e-5 and found.error[FLOAT][2] > 1e-3
    assert found.raises[FLOAT] == [False, False, True]
    assert not any(found.raises[EXACT] + found.raises[STORED])
    assert (tmp_path / "x.png").read_bytes().startswith(MAGIC[".png"])
    figure = found.figure
    assert figure is not None
    assert line(figure, STORED) == ([1, 4, 16], [b / 2**20 for b in stored if b])
    drawn = figure.axes[1].lines
    assert [list(item.get_ydata()) for item in drawn[::2]] == list(found.error.values())  # type: ignore[arg-type]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [EXACT, FLOAT, STORED, "hollow: backward() raises"]


def test_the_error_is_that_of_the_gradient() -> None:
    """By autograd through the pair update, written out, in float64 and in float32."""
    f = Cell().eval()
    z0, x = torch.randn(8, 16), torch.randn(8, 16)

    def gradient(dtype: torch.dtype) -> list[Tensor]:
        cell = Cell().eval().to(dtype)
        start, given = (t.to(dtype).requires_grad_() for t in (z0, x))
        z = y = start
        for _ in range(3):
            y = 0.5 * y + 0.5 * cell(z, given)
            z = 0.5 * z + 0.5 * cell(y, given)
        towards = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        return [
            g.double() for g in torch.autograd.grad(z, [start, given, *cell.parameters()], towards)
        ]

    wide, narrow = gradient(torch.float64), gradient(torch.float32)
    off = sum(float((a - b).square().sum()) for a, b in zip(narrow, wide, strict=True))
    expected = (off / sum(float(g.square().sum()) for g in wide)) ** 0.5
    found = plot.depth(f, z0, x, steps=(3,))
    assert found.figure is not None
    low, high = found.figure.axes[0].get_ylim()
    assert low < min(b / 2**20 for row in found.memory.values() for b in row if b) < high >= 2 * low
    # The same sums but for their order: the projection and the norms.
    assert found.error[STORED][0] == pytest.approx(expected, rel=0.5)
    assert found.error[EXACT][0] < 1e-5


def test_everything_is_left_as_it_was() -> None:
    f = Cell()
    z0, x = torch.randn(8, 16, requires_grad=True), torch.randn(8, 16)
    f.linear.weight.grad = torch.ones(16, 16)
    before = {name: t.clone() for name, t in f.state_dict(keep_vars=False).items()}
    identities = [id(t) for t in (*f.parameters(), *f.buffers())]
    random = torch.random.get_rng_state()
    plot.depth(f, z0, x, steps=(1, 2))
    after = f.state_dict()
    assert all(
        torch.equal(t, after[name]) and t.dtype == after[name].dtype for name, t in before.items()
    )
    assert identities == [id(t) for t in (*f.parameters(), *f.buffers())]
    assert torch.equal(f.linear.weight.grad, torch.ones(16, 16))
    assert z0.grad is None and f.linear.bias.grad is None and f.training
    assert torch.equal(random, torch.random.get_rng_state())
    assert_exact_gradients(f.eval(), z0, x, max_steps=2)


def test_dropout_draws_alike_in_all_ways() -> None:
    """Otherwise errors would be those of other masks."""
    found = plot.depth(Cell(), torch.zeros(8, 16), torch.randn(8, 16), steps=(1, 2))
    assert max(found.error[EXACT] + found.error[STORED]) < 1e-4


def test_pytrees_and_16_bits() -> None:
    f = nn.Linear(16, 16).bfloat16()

    def both(z: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(f(z[1]) + x), torch.tanh(z[0])

    start = torch.zeros(4, 16, dtype=torch.bfloat16)
    found = plot.depth(both, (start, start), torch.randn(4, 16).bfloat16(), steps=(1, 2))
    assert list(found.error) == [EXACT, "reversible, bfloat16 state", STORED]
    assert 2**-12 < max(found.error[EXACT] + found.error[STORED]) < 2**-4  # a rounding: 2**-9
    assert f.weight.dtype == torch.bfloat16


def test_an_overflow_on_the_way_back_is_no_gradient() -> None:
    f = nn.Linear(4, 4)
    with torch.no_grad():
        f.weight.copy_(0.9 * torch.eye(4))
    found = plot.depth(f, torch.ones(2, 4), steps=(1, 400), beta=0.9)
    assert found.raises[FLOAT] == [False, True] and found.error[FLOAT][1] != found.error[FLOAT][1]
    assert found.error[EXACT][1] < 1e-5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": ()}, ValueError, "steps: expected integers of 1 and more"),
        ({"steps": (0, 1)}, ValueError, "steps: expected integers of 1 and more"),
        ({"steps": (1.5,)}, ValueError, "steps: expected integers of 1 and more"),
        ({"steps": 8}, TypeError, r"steps: expected a sequence of integers, got 8; pass .*\(8,\)"),
        ({"state": "exact"}, TypeError, "depth: expected options that it does not set itself"),
    ],
)
def test_options_that_cannot_be(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plot.depth(Cell(), torch.zeros(8, 16), torch.zeros(8, 16), **options)


def test_an_f_that_has_no_float64() -> None:
    weight = torch.randn(4, 4)
    with pytest.raises(TypeError, match="f: expected to run in float64, for the reference"):
        plot.depth(lambda z: torch.tanh(z @ weight), torch.zeros(2, 4), steps=(1,))


def test_an_f_that_is_a_layer() -> None:
    with pytest.raises(TypeError, match="f: expected the f of a solve, got a RevDEQ; pass layer"):
        plot.depth(RevDEQ(Cell()), torch.zeros(8, 16), torch.zeros(8, 16))


def test_an_f_that_reads_a_computed_tensor() -> None:
    """No other adjoint is advised: they are what is measured."""
    z0, weight = torch.zeros(2, 4), 2 * torch.randn(4, 4, requires_grad=True)
    with pytest.raises(TypeError, match=r"^f: .* pass the tensor as an arg.*, tensor\)$") as said:
        plot.depth(lambda z: torch.tanh(z @ weight), z0, steps=(1,))
    assert "adjoint" not in str(said.value)
    found = plot.depth(lambda z, w: torch.tanh(z @ w + 1), z0, weight, steps=[1])
    assert found.error[STORED][0] < 1e-5


def test_a_state_in_float64_is_the_reference_itself() -> None:
    with pytest.raises(TypeError, match=r"z0: expected float32 or less, got torch.float64; pass z"):
        plot.depth(torch.tanh, torch.zeros(2, 4).double(), steps=(1,))


# ---- matplotlib ------------------------------------------------------------------------------


def test_matplotlib_is_imported_when_something_is_drawn(tmp_path: Path) -> None:
    """And pyplot never. Without matplotlib the error says what to install."""
    program = """
import sys
import torch, torch_revdeq
from torch_revdeq import plot, solve
assert not any(name.startswith("matplotlib") for name in sys.modules)
stats = solve(lambda z: 0.5 * z + 1, torch.zeros(2), max_steps=2, trace=True).stats
plot.residuals(stats, path=sys.argv[1])
plot.depth(lambda z: 0.5 * z + 1, torch.zeros(2), steps=(1,))
assert "matplotlib.pyplot" not in sys.modules
for name in [name for name in sys.modules if name.startswith("matplotlib")]:
    del sys.modules[name]
sys.modules["matplotlib"] = None
try:
    plot.residuals(stats)
except ImportError as error:
    assert "pip install 'revdeq-kernels[plot]'" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "x.svg")], check=True)
