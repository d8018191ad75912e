"""Deep supervision: which puzzle is where, what is averaged, how a run goes on with its bits."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import train_reasoning
from tests.training.toy import ALONE, TRAINING, losses
from torch_revdeq.models import RecursiveConfig, RecursiveModel
from training import logs
from training.checkpoint import WEIGHTS, open_checkpoint
from training.config import Reasoning, ReasoningRun, SudokuData, from_dict, to_dict
from training.errors import RunError
from training.interruption import InterruptedRunError
from training.order import seed_of
from training.presets import REASONING
from training.reasoning import AVERAGE, SLOTS, ReasoningTrainer
from training.sudoku import SudokuTask, generated

MODEL = RecursiveConfig(
    vocab_size=5, length=16, width=16, hidden=16, layers=1, latent_steps=1, steps=2
)
DATA = SudokuData(size=4, train=20, held_out=6)


def toy(model: dict[str, Any] | None = None, passes: int = 3, **changes: Any) -> ReasoningRun:
    """A run of 4x4 puzzles with these options of training, or of reasoning."""
    own = {name: changes.pop(name) for name in ("explore", "average") if name in changes}
    return ReasoningRun(
        dataclasses.replace(MODEL, **(model or {})),
        DATA,
        dataclasses.replace(TRAINING, **changes),
        Reasoning(passes=passes, **own),
    )


@pytest.fixture(scope="module")
def task() -> SudokuTask:
    return SudokuTask(generated(DATA), augment=True)


def trainer(
    run: ReasoningRun, task: SudokuTask, folder: Path, *, resume: bool = False
) -> ReasoningTrainer:
    """As train_reasoning.py makes it."""
    torch.manual_seed(seed_of(run.training.seed, "weights"))
    model = RecursiveModel(run.model)
    checkpoint = open_checkpoint(folder) if resume else None
    return ReasoningTrainer(run, model, task, ALONE, folder, checkpoint)


def state(of: ReasoningTrainer) -> dict[str, Tensor]:
    """Everything that a run goes on from."""
    files = {"weights": of.bare.state_dict(), **of.more()}
    named = {f"{file}/{name}": t for file, part in files.items() for name, t in part.items()}
    moments = of.optimizer.state_dict()["state"]
    return named | {f"{i}/{k}": v for i, kinds in moments.items() for k, v in kinds.items()}


# ---- puzzles come and go -----------------------------------------------------------------------


def always(of: ReasoningTrainer, logit: float) -> None:
    """The logit of halting is this, whatever the answer: its weights are at 0, and stay there."""
    of.bare.requires_grad_(requires_grad=False)
    of.bare.get_parameter("head.weight").requires_grad_()
    torch.nn.init.constant_(of.bare.get_parameter("halt.bias"), logit)


def test_puzzles_that_halt_make_room_for_the_next(task: SudokuTask, tmp_path: Path) -> None:
    run = trainer(toy(explore=0), task, tmp_path)
    always(run, 9.0)
    fresh = run.network.start(8)
    for done in range(1, 4):
        before = run.slots.tokens
        run.update()
        assert run.samples == 8 * (done + 1) and not run.slots.passes.any()
        assert (run.slots.tokens != before).any(1).all()
        assert all(map(torch.equal, run.slots.carry.z, fresh.z))
        wanted, answers = task.training(*run.order.take(8 * done, 8))
        assert torch.equal(run.slots.tokens, wanted) and torch.equal(run.slots.answers, answers)


def test_the_others_go_on_until_their_last_pass(task: SudokuTask, tmp_path: Path) -> None:
    run = trainer(toy(explore=0), task, tmp_path)
    always(run, -9.0)
    first, seen = run.slots.tokens, []
    for _ in range(3):
        carry = run.slots.carry
        run.update()
        seen.append((run.slots.passes.unique().tolist(), torch.equal(run.slots.tokens, first)))
        assert not torch.equal(run.slots.carry.z[0], carry.z[0])
    assert seen == [([1], True), ([2], True), ([0], False)]
    assert run.samples == 16


def test_some_may_not_halt_yet(task: SudokuTask, tmp_path: Path) -> None:
    """Of puzzles whose logit says so; all of them may after the last pass."""
    run = trainer(toy(explore=0.5), task, tmp_path)
    always(run, 9.0)
    kept = []
    for _ in range(8):
        run.update()
        kept.append(int((run.slots.passes > 0).sum()))
        assert run.slots.passes.max() < 3
    assert 0 < sum(kept) < 8 * 8


def test_a_part_of_the_slots_is_filled_in_order(task: SudokuTask, tmp_path: Path) -> None:
    run = trainer(toy(), task, tmp_path)
    before = run.slots.tokens.clone()
    which = torch.tensor([False, True, False, False, True, False, False, True])
    run.refill(which)
    wanted, answers = task.training(*run.order.take(8, 3))
    assert torch.equal(run.slots.tokens[which], wanted)
    assert torch.equal(run.slots.answers[which], answers)
    assert torch.equal(run.slots.tokens[~which], before[~which])
    assert run.samples == 11


# ---- evaluations -------------------------------------------------------------------------------


def test_evaluations_are_of_the_averaged_weights(task: SudokuTask, tmp_path: Path) -> None:
    """A decay of 0 leaves the newest; in others there is something of those before."""
    for decay, newest in ((0.0, True), (0.9, False)):
        run = trainer(toy(average=decay), task, tmp_path)
        weights = [run.bare.get_parameter("head.weight").detach().clone()]
        for _ in range(3):
            run.update()
            weights.append(run.bare.get_parameter("head.weight").detach().clone())
        average = run.averaged.get_parameter("head.weight")
        assert torch.equal(average, weights[-1]) is newest
        # The first update's weights are taken as they are.
        mean = weights[1]
        for later in weights[2:]:
            mean = decay * mean + (1 - decay) * later
        assert (average - mean).abs().max() <= 8 * 2.0**-24 * mean.abs().max()
        tokens, answers = task.evaluation(torch.arange(6))
        found = run.averaged.predict(tokens, 3, halt=True)
        result = run.evaluate()
        right = found.tokens == answers
        assert result["accuracy"] == right.all(1).double().mean()
        assert result["cell_accuracy"] == pytest.approx(right.double().mean().item(), rel=1e-12)
        assert result["passes"] == found.passes.double().mean()


# ---- runs that are cut off ---------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"random_depth": (1, 3), "precision": "bfloat16"}])
def test_an_interrupted_run_goes_on_with_its_bits(
    options: dict[str, Any], task: SudokuTask, tmp_path: Path
) -> None:
    """Amid puzzles: some are at their first pass, others are not."""
    run = toy(explore=0.5, updates=9, evaluate_every=9, **options)
    whole = trainer(run, task, tmp_path / "whole")
    result = whole.train()

    def interrupt(done: int) -> None:
        if done == 3:
            signal.raise_signal(signal.SIGINT)

    cut = trainer(run, task, tmp_path / "cut")
    torch.nn.init.normal_(cut.bare.get_parameter("halt.weight"), std=9.0)
    with pytest.raises(InterruptedRunError, match="interrupted after update 4") as stop:
        cut.train(interrupt)
    assert stop.value.status == 130
    again = trainer(run, task, tmp_path / "cut", resume=True)
    assert again.updates == 4 and again.samples == cut.samples
    for _ in range(3):
        assert cut.update()[0] == again.update()[0]
    assert cut.slots.passes.unique().numel() > 1
    for name, value in state(cut).items():
        assert torch.equal(state(again)[name], value), name
    # The same from weights that were not changed.
    straight = trainer(run, task, tmp_path / "straight")
    with pytest.raises(InterruptedRunError):
        straight.train(interrupt)
    resumed = trainer(run, task, tmp_path / "straight", resume=True)
    assert resumed.train() == result
    assert losses(tmp_path / "straight") == losses(tmp_path / "whole")
    for name, value in state(whole).items():
        assert torch.equal(state(resumed)[name], value), name


def test_the_averaged_weights_make_a_model(task: SudokuTask, tmp_path: Path) -> None:
    run = trainer(toy(), task, tmp_path)
    run.train()
    path = open_checkpoint(tmp_path).path
    assert {p.name for p in path.iterdir()} >= {WEIGHTS, AVERAGE, SLOTS}
    facts = json.loads((path / "checkpoint.json").read_text())
    model = RecursiveModel(RecursiveConfig.from_dict(facts["config"]["model"]))
    model.load_state_dict(load_file(path / AVERAGE))
    tokens, _ = task.evaluation(torch.arange(6))
    want = run.averaged.predict(tokens, 3)
    assert torch.equal(model.predict(tokens, 3).tokens, want.tokens)
    records = logs.read(tmp_path / "log.jsonl")
    assert all(0 <= r["accuracy"] <= 1 for r in records)
    assert any(r["passes"] for r in records if r["kind"] == "training")


def test_a_checkpoint_without_its_puzzles_is_refused(task: SudokuTask, tmp_path: Path) -> None:
    trainer(toy(), task, tmp_path).train()
    (open_checkpoint(tmp_path).path / SLOTS).unlink()
    with pytest.raises(RunError, match=r"slots\.safetensors: cannot be read|cannot be read"):
        open_checkpoint(tmp_path)


# ---- what cannot be ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", REASONING)
def test_presets(name: str) -> None:
    run = REASONING[name]
    assert from_dict(ReasoningRun, json.loads(json.dumps(to_dict(run)))) == run
    assert (run.model.vocab_size, run.model.length) == (run.data.size + 1, run.data.size**2)
    with torch.device("meta"):
        RecursiveModel(run.model, backward_steps=run.reasoning.backward_steps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel": "ddp"}, "parallel: expected none, got ddp: one process carries"),
        ({"micro_batch": 2}, "micro_batch: expected None, got 2: one process carries"),
    ],
)
def test_options_of_other_runs(
    changes: dict[str, Any], message: str, task: SudokuTask, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=message):
        trainer(toy(**changes), task, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"passes": 0}, "passes: expected at least 1, got 0"),
        ({"backward_steps": 0}, "backward_steps: expected at least 1, got 0"),
        ({"explore": 1.0}, r"explore: expected a number in \[0, 1\), got 1.0"),
        ({"average": -0.1}, r"average: expected a number in \[0, 1\), got -0.1"),
    ],
)
def test_numbers_that_no_run_can_have(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        Reasoning(**changes)


def script(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train_reasoning.py", *args])
    train_reasoning.main()


SMALL = (
    "--width", "16", "--hidden", "16", "--latent-steps", "1", "--steps", "1", "--batch", "4",
    "--train", "12", "--held-out", "4", "--device", "cpu", "--passes", "2", "--log-every", "1",
    "--evaluate-every", "2", "--warmup", "0",
)  # fmt: skip


def test_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains, resumes, and refuses to resume as another run: before anything is trained."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = str(tmp_path / "run")
    script(monkeypatch, *SMALL, "--updates", "2", "--out", out, "--backward-steps", "1")
    assert "held-out puzzles solved: 0.00%, in 2.00 passes on average" in capsys.readouterr().out
    script(monkeypatch, "--updates", "3", "--out", out, "--resume")
    assert len(losses(tmp_path / "run")) == 3
    for args, message in (
        (("--width", "32"), r"resume: expected the options of .*, got model\.width 32 aga"),
        (("--backward-steps", "None"), r"got reasoning\.backward_steps None against 1"),
        (("--adjoint", "backprop"), r"got model\.adjoint 'backprop' against 'auto'"),
    ):
        with pytest.raises(RunError, match=message):
            script(monkeypatch, *args, "--out", out, "--resume")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--size", "6"), "vocab_size, length: expected 7 and 36 for puzzles of 6x6 cells"),
        (("--source", "csv", "--folder", "nowhere"), "nowhere/test.csv: cannot be read"),
        (("--clues", "4", "--held-out", "4000"), "expected 4000 puzzles of 4x4 cells"),
    ],
)
def test_what_cannot_be_trained_is_named(
    args: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(RunError, match=message):
        script(monkeypatch, *SMALL, "--out", str(tmp_path / "run"), *args)


def test_an_option_that_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        script(monkeypatch, "--cycles", "3")
    assert stop.value.code == 2 and "--cycles" in capsys.readouterr().err
