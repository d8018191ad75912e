"""The solver on two processes of torch.distributed: DDP, FSDP2, tensor parallelism, a common stop.

All cases run in one start of torchrun, by ``worker``; the tests here read what came of
them. A case's error is the largest difference of a gradient from that of one process with the whole
batch and ``adjoint="backprop"``, relative to the largest gradient.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch.distributed as dist

if not dist.is_available():
    pytest.skip("this torch is built without torch.distributed", allow_module_level=True)

from tests.distributed import models, replicated, sharded  # noqa: F401  (they register cases)
from tests.distributed.model import CASES, Expected
from tests.torchrun import output_of, torchrun

BOUND = 1e-6
"""Allowed error: some roundings of float32. The states agree bit for bit up to those of f."""

BOUND_BFLOAT16 = 2.0**-7
"""Allowed where one side rounds every sum to bfloat16 and the other does not."""

WRONG = 1e-2
"""The least error of a gradient that is not a rounding away but wrong."""

Outcomes = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What came of every case; the test fails where the processes did not get to the end."""
    folder = tmp_path_factory.mktemp("distributed")
    target = folder / "outcomes.json"
    process = torchrun("tests.distributed.worker", str(target), str(folder))
    output = output_of(process)
    assert process.returncode == 0, output[-8000:]
    return json.loads(target.read_text())


READ: set[str] = set()


def of(expect: Expected) -> pytest.MarkDecorator:
    """The names of the cases that say so."""
    READ.add(expect)
    return pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.expect == expect])


@of("right")
def test_gradients_are_those_of_one_process(outcomes: Outcomes, name: str) -> None:
    assert outcomes[name]["exception"] is None
    assert outcomes[name]["error"] <= BOUND


@of("rounded")
def test_bfloat16_parameters_added_up_in_float32(outcomes: Outcomes, name: str) -> None:
    """Not the sums that autograd makes in bfloat16, but as near to them as these are exact."""
    assert outcomes[name]["exception"] is None
    assert 0 < outcomes[name]["error"] <= BOUND_BFLOAT16


@of("sharded f")
def test_a_sharded_f_is_refused(outcomes: Outcomes, name: str) -> None:
    adjoint = CASES[name].keywords["adjoint"]
    assert outcomes[name]["exception"] == (
        f"RuntimeError: f: expected parameters that stay in place for adjoint={adjoint!r}, got a "
        "module sharded by FSDP; choose solve(adjoint='hooks'), or shard the module that calls "
        "solve"
    )


@of("wrapped f")
def test_a_wrapped_f_is_refused(outcomes: Outcomes, name: str) -> None:
    message = outcomes[name]["exception"]
    assert message.startswith(
        "RuntimeError: f: expected a module that is not wrapped in Distributed"
    )


@of("wrong")
def test_ranks_alone_are_wrong(outcomes: Outcomes, name: str) -> None:
    """The ranks see data so different that a missing exchange cannot pass for a rounding."""
    assert outcomes[name]["exception"] is None
    assert outcomes[name]["error"] > WRONG


@of("another graph")
def test_a_sharded_f_that_is_not_refused_gives_no_wrong_gradient(
    outcomes: Outcomes, name: str
) -> None:
    """Without the refusal by its type, the graph of the way back is seen to be another."""
    assert "f: expected to run the same operations" in outcomes[name]["exception"]


def test_no_case_goes_unread(outcomes: Outcomes) -> None:
    assert outcomes.keys() == CASES.keys()
    assert {case.expect for case in CASES.values()} == READ
