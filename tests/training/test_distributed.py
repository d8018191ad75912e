"""The training loop on two processes: the losses of one, and checkpoints for either.

All runs are made in one start of torchrun, by ``worker``; the tests read what came of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from tests.torchrun import output_of, torchrun
from tests.training.toy import CutError, cut_after, losses, resumed, toy, trainer
from tests.training.worker import ALIKE, COMPILED, RESUMED, RUNS
from training import checkpoint as checkpoints
from training.errors import RunError
from training.parallel import placed

pytestmark = pytest.mark.skipif(
    not dist.is_available(), reason="this torch is built without torch.distributed"
)

BOUND = 1e-5
"""Allowed for losses, relative. Sums of gradients in another order differ by some 2^-24 of the
largest; AdamW divides them by moments as small, so that a weight may move by some hundred such
roundings of a step, lr 1e-2, of what it is, and a loss of 5 by a few 1e-6 in six updates."""


WORKER = "tests.training.worker"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process did, in "alone ...", and what two did, under the names of their runs."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("training")
    for name in RESUMED:
        with pytest.raises(CutError):
            trainer(toy(**ALIKE), folder / name).train(cut_after(3))
    process = torchrun(WORKER, str(folder))
    for name in ("ddp", "ddp, accumulation", "ddp, one part", "fsdp, tol"):
        trainer(toy(**{**RUNS[name], "parallel": "none"}), folder / f"alone, {name}").train()
    output = output_of(process)
    assert process.returncode == 0, output[-8000:]
    return folder


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / name / "checkpoints" / "update-00000006" / checkpoints.WEIGHTS)


def test_replicas_are_one_process_bit_for_bit(folder: Path) -> None:
    assert len(losses(folder / "ddp")) == 6
    assert losses(folder / "ddp") == losses(folder / "alone, ddp")
    alone = weights(folder, "alone, ddp")
    for name, value in weights(folder, "ddp").items():
        assert torch.equal(value, alone[name]), name


@pytest.mark.parametrize(
    ("name", "alone"),
    [
        ("fsdp", "ddp"),  # the gradient's norm is added up shard by shard
        ("ddp, accumulation", "ddp, accumulation"),
        ("fsdp, accumulation", "ddp, accumulation"),
        ("ddp, one part", "ddp, one part"),
        ("fsdp, one part", "ddp, one part"),
        ("fsdp, tol", "fsdp, tol"),
    ],
)
def test_the_losses_of_one_process(folder: Path, name: str, alone: str) -> None:
    assert len(losses(folder / name)) == 6
    assert losses(folder / name) == pytest.approx(losses(folder / f"alone, {alone}"), rel=BOUND)


@pytest.mark.slow
def test_compiled_the_losses_are_the_same(folder: Path, tmp_path: Path) -> None:
    process = torchrun(WORKER, str(tmp_path), "compiled")
    output = output_of(process)
    assert process.returncode == 0, output[-8000:]
    for name in COMPILED:
        assert len(losses(tmp_path / name)) == 6
        assert losses(tmp_path / name) == pytest.approx(losses(folder / name), rel=BOUND)


@pytest.mark.parametrize("name", RESUMED)
def test_from_one_process_to_two(folder: Path, name: str) -> None:
    """The log of such a run begins with what one process did."""
    assert len(losses(folder / name)) == 6
    assert losses(folder / name) == pytest.approx(losses(folder / "alone, ddp"), rel=BOUND)
    if name.startswith("ddp"):
        assert losses(folder / name) == losses(folder / "alone, ddp")


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_from_two_processes_to_one(folder: Path, name: str) -> None:
    """From the third update, which two wrote, the same again."""
    before = losses(folder / name)
    copy = folder / f"{name}, again"
    shutil.copytree(folder / name, copy)
    resumed(toy(**ALIKE), copy, "update-00000003").train()
    assert losses(copy) == pytest.approx(before, rel=BOUND)
    if name == "ddp":
        assert losses(copy) == before


@pytest.mark.slow
def test_a_killed_process_ends_the_run(tmp_path: Path) -> None:
    """torchrun ends the other, and says which it was; one process goes on from the checkpoint."""
    process = torchrun(WORKER, str(tmp_path), "killed")
    output = output_of(process)
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL) received" in output
    assert "rank      : 1" in output
    again = resumed(toy(**ALIKE, updates=60), tmp_path)
    assert again.updates == 3
    with pytest.raises(CutError):
        again.train(cut_after(6))
    assert len(losses(tmp_path)) == 6


def test_processes_without_parallel_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="parallel: expected ddp or fsdp for 2 processes, got none"):
        placed(toy().training).__enter__()
    monkeypatch.delenv("RANK")
    with pytest.raises(RunError, match="parallel: ddp needs processes that torchrun started"):
        placed(toy(parallel="ddp").training).__enter__()


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="batch: expected a multiple of 3 samples"):
        trainer(toy(batch=8, micro_batch=3), tmp_path)
