"""A run that was cut off goes on as if it had not been: bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.toy import CutError, cut_after, losses, resumed, toy, trainer
from training import logs
from training.config import LanguageRun
from training.loop import Trainer

RUNS = {
    "dropout, random depth, accumulation": toy(
        {"dropout": 0.2}, random_depth=(1, 3), micro_batch=2
    ),
    "plateau": toy(schedule="plateau", warmup=0),
    "tol": toy({"tol": 0.1, "steps": 6}),
    "bfloat16": toy(precision="bfloat16"),
}


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.bare.state_dict().items()}


def assert_resumes(run: LanguageRun, folder: Path, after: int, name: str = "latest") -> None:
    """A run cut off after an update gives, when it is resumed, what one without a cut gives."""
    whole = trainer(run, folder / "whole")
    result = whole.train()
    with pytest.raises(CutError):
        trainer(run, folder / "cut").train(cut_after(after))
    again = resumed(run, folder / "cut", name)
    assert again.updates == 3
    assert again.train() == result
    assert losses(folder / "cut") == losses(folder / "whole")
    assert len(losses(folder / "cut")) == 6
    for (key, value), other in zip(weights(whole).items(), weights(again).values(), strict=True):
        assert torch.equal(value, other), key
    moments = [run.optimizer.state_dict()["state"] for run in (whole, again)]
    assert moments[0].keys() == moments[1].keys()
    for number, state in moments[0].items():
        for key, value in state.items():
            assert torch.equal(value, moments[1][number][key]), (number, key)
    assert whole.schedule.state_dict() == again.schedule.state_dict()


@pytest.mark.parametrize("name", RUNS)
def test_the_same_bits(name: str, tmp_path: Path) -> None:
    """Cut two updates after the checkpoint: what was done since then is done again."""
    assert_resumes(RUNS[name], tmp_path, after=5)


@pytest.mark.slow
def test_the_same_bits_compiled(tmp_path: Path) -> None:
    assert_resumes(toy({"dropout": 0.2}, compile=True), tmp_path, after=3)


def test_random_numbers_are_drawn(tmp_path: Path) -> None:
    """What is to come again with the same bits is there at all: without it the losses differ."""
    name = "dropout, random depth, accumulation"
    trainer(RUNS[name], tmp_path / "all").train()
    steps = [r["steps"] for r in logs.read(tmp_path / "all" / "log.jsonl") if "steps" in r]
    assert len(set(steps)) > 1
    others: list[dict[str, Any]] = [
        {"random_depth": None, "model": {"dropout": 0.2}},
        {"random_depth": (1, 3), "model": {"dropout": 0.0}},
        {"random_depth": (1, 3), "model": {"dropout": 0.2}, "seed": 1},
    ]
    for i, other in enumerate(others):
        trainer(toy(micro_batch=2, **other), tmp_path / str(i)).train()
        assert losses(tmp_path / str(i)) != losses(tmp_path / "all")


def test_the_log_of_a_cut_off_run_is_continued(tmp_path: Path) -> None:
    run = toy()
    with pytest.raises(CutError):
        trainer(run, tmp_path).train(cut_after(4))
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"kind": "training", "upd')  # killed while it wrote
    resumed(run, tmp_path).train()
    records = logs.read(tmp_path / "log.jsonl")
    assert [r["update"] for r in records if r["kind"] == "training"] == [1, 2, 3, 4, 5, 6]
    assert [r["update"] for r in records if r["kind"] == "evaluation"] == [3, 6]


def test_a_run_that_is_over_is_evaluated_again(tmp_path: Path) -> None:
    run = toy()
    result = trainer(run, tmp_path).train()
    assert resumed(run, tmp_path).train() == result


def test_accumulation_adds_up_to_the_batch(tmp_path: Path) -> None:
    """The same samples in other parts: equal but for the roundings of float32.

    Six updates at lr 1e-2 move a weight by 0.06 at most, in AdamW by ratios of moments whose error
    is some hundred times that of the gradient's sums (2^-24 each) where a gradient is near zero.
    """
    trainer(toy(), tmp_path / "whole").train()
    trainer(toy(micro_batch=2), tmp_path / "parts").train()
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    assert losses(tmp_path / "parts") != losses(tmp_path / "whole")
