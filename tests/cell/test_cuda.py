"""The equilibrium cell on a GPU: the composite, and each kernel where it is supported."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from revdeq_kernels.ops.cell import choice as cell_choice
from tests.cell.linear_cells import ACTS, Cell, Outcome, both_ways, make, of_rows, run
from tests.cell.tolerances import assert_within_bounds
from tests.conftest import same_bits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("default"),  # a GPU machine brings a torch of its own choice
]

KERNELS = [
    (implementation, dtype, d)
    for implementation, features in cell_choice.FEATURES.items()
    for dtype, ds in features.items()
    for d in ds
]
kernels = pytest.mark.parametrize(("implementation", "dtype", "d"), KERNELS)


def on_gpu(cell: Cell) -> Cell:
    moved = {name: value.cuda() for name, value in vars(cell).items() if torch.is_tensor(value)}
    return replace(cell, **moved)


def require(implementation: str, cell: Cell) -> None:
    if reason := cell_choice.why_not(implementation, cell.w.cuda(), cell.act):
        pytest.skip(reason)


# With many features in bfloat16 a float32 state leaves bounds that say nothing.
STATES = [(*kernel, "exact") for kernel in KERNELS]
STATES += [(*kernel, "float32") for kernel in KERNELS if kernel[1] != torch.bfloat16]
STATES += [("triton", torch.bfloat16, 32, "float32")]
STATES += [
    ("composite", dtype, 32, state)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for state in ("exact", "float32")
]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(("implementation", "dtype", "d", "state"), STATES)
def test_values_and_gradients_on_a_gpu(
    implementation: str, dtype: torch.dtype, d: int, state: str, act: str
) -> None:
    """The first call of a kind of kernel also tries it: bit for bit back, near the composite."""
    cell = make(101, d, dtype, act=act, state=state, steps=1)
    require(implementation, cell)
    got = run(on_gpu(cell), implementation=implementation)
    assert_within_bounds(cell, Outcome(*(t.cpu() for t in got)))


@pytest.mark.parametrize("state", ["exact", "float32"])
@pytest.mark.parametrize(
    ("implementation", "dtype", "d"), [("composite", torch.float32, 32), *KERNELS]
)
def test_rows_that_halt_on_a_gpu(
    implementation: str, dtype: torch.dtype, d: int, state: str
) -> None:
    """With the bits of a solve of as many steps as each took."""
    cell = on_gpu(make(2000, d, dtype, state=state, steps=6, tol=0.3))
    require(implementation, cell)
    out = run(cell, implementation=implementation)
    taken = both_ways(cell, implementation)[0].taken
    assert len(taken.unique()) > 1
    for steps in taken.unique().tolist():
        fixed = run(replace(cell, steps=steps, tol=0.0), implementation=implementation)
        rows = taken == steps
        for name in ("y", "z", "grad_u", "grad_z0"):
            assert same_bits(getattr(out, name)[rows], getattr(fixed, name)[rows]), name


@kernels
def test_a_gradient_is_the_same_every_time(implementation: str, dtype: torch.dtype, d: int) -> None:
    """And a row's does not depend on how many tiles a program has."""
    cell = make(20000, d, dtype, steps=8)
    require(implementation, cell)
    first, *others = [run(on_gpu(cell), implementation=implementation) for _ in range(4)]
    assert all(bool(t.isfinite().all()) for t in first)
    for other in others:
        assert all(map(torch.equal, first, other))
    few = run(on_gpu(of_rows(cell, slice(101))), implementation=implementation)
    for name in ("y", "z", "grad_u", "grad_z0"):
        assert torch.equal(getattr(few, name), getattr(first, name)[:101]), name


@pytest.mark.parametrize("state", ["exact", "float32"])
@kernels
def test_sanitize_a_part_of_a_tile(
    implementation: str, dtype: torch.dtype, d: int, state: str
) -> None:
    """Small, for compute-sanitizer: whole tiles and a part of one, forward and back."""
    for tol in (0.0, 0.6):
        cell = make(2 * 64 + 5, d, dtype, state=state, steps=2, tol=tol)
        require(implementation, cell)
        assert run(on_gpu(cell), implementation=implementation).grad_u.shape == cell.u.shape
