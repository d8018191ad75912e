"""The solver on two processes of torch.distributed: DDP, FSDP2, tensor parallelism, a common stop.

All cases run in one start of torchrun, by ``worker``; the tests here read what came of
them. A case's error is the largest difference of a gradient from that of one process with the whole
batch and ``adjoint="backprop"``, relative to the largest gradient.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch.distributed as dist

from tests import ROOT

pytestmark = pytest.mark.skipif(
    not dist.is_available(), reason="this torch is built without torch.distributed"
)

SECONDS = 300

BOUND = 1e-6
"""Allowed error: some roundings of float32. The states agree bit for bit up to those of f."""

BOUND_BFLOAT16 = 2.0**-7
"""Allowed where one side rounds every sum to bfloat16 and the other does not."""

WRONG = 1e-2
"""The least error of a gradient that is not a rounding away but wrong."""

RIGHT = [
    "tensor parallel f",
    "tensor parallel f, float32 state",
    "ddp",
    "ddp, hooks",
    "ddp, checkpoint",
    "ddp, float32 state",
    "ddp, a method of the model",
    "ddp, static graph",
    "ddp, static graph, hooks",
    "ddp, unused parameter",
    "ddp, unused parameter, hooks",
    "ddp, bucket views",
    "ddp, many buckets",
    "ddp, cell used outside",
    "ddp, cell used outside, hooks",
    "ddp, accumulation without exchange",
    "ddp, accumulation without exchange, hooks",
    "ddp, hook on a parameter",
    "ddp, hook on a parameter, hooks",
    "ddp, compiled f",
    "ddp, three steps of descent",
    "ranks stop together",
    "ranks stop together, checks every third step",
    "an f that communicates stops together",
    "samples halt, ranks stop together",
    "a sample that is no number keeps all ranks going",
    "a number that is none keeps all ranks going",
    "fsdp",
    "fsdp, not resharded",
    "fsdp, hooks",
    "fsdp, checkpoint",
    "fsdp, float32 state",
    "fsdp of the root",
    "fsdp of the root, not resharded",
    "fsdp of the root, closure",
    "fsdp of the root, a method of the model",
    "fsdp of the root, a method of the model, not resharded",
    "fsdp of the root, cell used outside",
    "fsdp of the root, recomputed",
    "fsdp of the root, recomputed, a method of the model",
    "fsdp of all parts, a method of the model",
    "fsdp, accumulation without exchange",
    "fsdp, three steps of descent",
    "fsdp, three steps of descent, not resharded",
    "fsdp, bfloat16 parameters",
    "fsdp, bfloat16 parameters, hooks",
    "fsdp of f, hooks",
    "fsdp of f, hooks, float32 state",
    "fsdp of f's children, hooks",
    "fsdp of f's children, hooks, float32 state",
    "fsdp of f in a closure, hooks",
    "fsdp of f in a closure, hooks, float32 state",
    "fsdp of f, backprop",
    "fsdp of f, auto",
    "fsdp of f's children, auto",
    "fsdp of f, no gradient",
    "tensor parallel f, hooks",
    "tensor parallel f, frozen encoder",
    "tensor parallel f, frozen encoder, float32 state",
    "ddp, language model",
    "ddp, the paper's language model",
    "ddp, image model",
    "fsdp, language model",
    "fsdp, language model, layer by itself",
    "fsdp, language model, cell by itself",
    "fsdp, built on the meta device",
    "fsdp, a language model generates",
]

SHARDED = {
    "fsdp of f, reversible": "reversible",
    "fsdp of f, checkpoint": "checkpoint",
    "fsdp of f's children, reversible": "reversible",
    "fsdp of f's children, checkpoint": "checkpoint",
    "fsdp of f in a closure, reversible": "reversible",
    "fsdp of f in a closure, checkpoint": "checkpoint",
    "fsdp of f in a method, reversible": "reversible",
    "fsdp of f in a method, checkpoint": "checkpoint",
    "fsdp1 of f": "reversible",
    "fsdp1 of f, checkpoint": "checkpoint",
}
"""Refused, by the adjoint that the message names."""

WRAPPED = ["ddp around f", "ddp around f, hooks", "ddp around f, backprop"]

ROUNDED = "fsdp, bfloat16 parameters, added up in float32"
ALONE = "nothing exchanged"
UNREFUSED = "fsdp of f, reversible, not refused"

Outcomes = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What came of every case; the test fails where the processes did not get to the end."""
    folder = tmp_path_factory.mktemp("distributed")
    target = folder / "outcomes.json"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    here = {"OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        here["GLOO_SOCKET_IFNAME"] = "lo"  # whatever the name of this machine resolves to
    with subprocess.Popen(
        [*start, "-m", "tests.distributed.worker", str(target), str(folder)],
        cwd=ROOT,
        env={**here, **os.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its processes first
            output, _ = process.communicate()
            pytest.fail(f"the cases took more than {SECONDS} s:\n{output[-4000:]}")
    assert process.returncode == 0, output[-8000:]
    return json.loads(target.read_text())


@pytest.mark.parametrize("name", RIGHT)
def test_gradients_are_those_of_one_process(outcomes: Outcomes, name: str) -> None:
    assert_right(outcomes[name])


def test_bfloat16_parameters_added_up_in_float32(outcomes: Outcomes) -> None:
    """Not the sums that autograd makes in bfloat16, but as near to them as these are exact."""
    assert_right(outcomes[ROUNDED], BOUND_BFLOAT16)
    assert outcomes[ROUNDED]["error"] > 0


@pytest.mark.parametrize(("name", "adjoint"), SHARDED.items())
def test_a_sharded_f_is_refused(outcomes: Outcomes, name: str, adjoint: str) -> None:
    assert outcomes[name]["exception"] == (
        f"RuntimeError: f: expected parameters that stay in place for adjoint={adjoint!r}, got a "
        "module sharded by FSDP; choose solve(adjoint='hooks'), or shard the module that calls "
        "solve"
    )


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_f_is_refused(outcomes: Outcomes, name: str) -> None:
    message = outcomes[name]["exception"]
    assert message.startswith(
        "RuntimeError: f: expected a module that is not wrapped in Distributed"
    )


def test_ranks_alone_are_wrong(outcomes: Outcomes) -> None:
    """The ranks see data so different that a missing exchange cannot pass for a rounding."""
    assert outcomes[ALONE]["exception"] is None
    assert outcomes[ALONE]["error"] > WRONG


def test_a_sharded_f_that_is_not_refused_gives_no_wrong_gradient(outcomes: Outcomes) -> None:
    """Without the refusal by its type, the graph of the way back is seen to be another."""
    assert "f: expected to compute its result by the same" in outcomes[UNREFUSED]["exception"]


def test_no_case_goes_unread(outcomes: Outcomes) -> None:
    read = [*RIGHT, *SHARDED, *WRAPPED, ROUNDED, ALONE, UNREFUSED]
    assert sorted(outcomes) == sorted(read)


def assert_right(outcome: dict[str, Any], bound: float = BOUND) -> None:
    assert outcome["exception"] is None, outcome["exception"]
    assert outcome["error"] <= bound
