"""Configurations and the command line: what is not as it must be is said before a run begins."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torch_revdeq.models import LanguageModel, VisionModel
from training.command import Command, parse
from training.config import ImageRun, LanguageRun, Training, from_dict, to_dict
from training.errors import RunError
from training.evaluation import evaluate
from training.logs import solver_figures
from training.presets import IMAGES, LANGUAGE
from training.schedule import schedule_for, share
from training_toy import ALONE, task, toy, trainer

ROOT = Path(__file__).parent.parent
TOY = {"toy": toy(), "other": toy(batch=4)}


def command(folder: Path, *args: str) -> Command[LanguageRun]:
    return parse(TOY, "a test", ["--out", str(folder), *args])


# ---- dictionaries ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LANGUAGE)
def test_presets_of_language(name: str) -> None:
    """They come back from JSON, and their models can be built."""
    run = LANGUAGE[name]
    assert from_dict(LanguageRun, json.loads(json.dumps(to_dict(run)))) == run
    with torch.device("meta"):
        LanguageModel(run.model)


@pytest.mark.parametrize("name", IMAGES)
def test_presets_of_images(name: str) -> None:
    run = IMAGES[name]
    assert from_dict(ImageRun, json.loads(json.dumps(to_dict(run)))) == run
    with torch.device("meta"):
        VisionModel(run.model)


def test_a_tuple_comes_back() -> None:
    run = toy(random_depth=(1, 3), micro_batch=2)
    assert from_dict(LanguageRun, json.loads(json.dumps(to_dict(run)))) == run


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (None, {"batch": 3}, "config: unknown key 'batch'; known are data, model, training"),
        ("training", {"lerning_rate": 1}, "config.training: unknown key 'lerning_rate'; known are"),
        ("model", {"depth": 1}, "config.model: unknown key 'depth'; known are adjoint, beta"),
        ("training", {"lr": "fast"}, "config.training.lr: expected float, got 'fast'"),
        ("training", {"updates": 1.5}, "config.training.updates: expected int, got 1.5"),
        ("training", {"batch": True}, "config.training.batch: expected int, got True"),
        ("training", {"betas": [0.9]}, "config.training.betas: expected"),
        ("training", {"schedule": "step"}, "config.training.schedule: expected"),
        ("training", {"lr": -1}, "lr: expected a positive number, got -1"),
        ("training", {"keep": 0}, "keep: expected at least 1, got 0"),
        ("training", {"random_depth": [3, 1]}, "random_depth: expected least and most steps"),
        ("training", {"schedule": "plateau"}, "warmup: expected 0 with schedule plateau, got 2"),
        ("model", {"heads": 3}, "config.model: width: expected a multiple of heads=3"),
        ("data", {"source": "books"}, "config.data.source: expected"),
    ],
)
def test_a_bad_configuration(part: str | None, changes: dict[str, Any], message: str) -> None:
    values = to_dict(toy())
    (values[part] if part else values).update(changes)
    with pytest.raises(RunError) as error:
        from_dict(LanguageRun, values)
    assert message in str(error.value)


def test_no_configuration_at_all() -> None:
    for values, message in (([], "config: expected named values, got []"), ({}, "model")):
        with pytest.raises(RunError, match=message.replace("[]", r"\[\]")):
            from_dict(LanguageRun, values)


# ---- the command line ------------------------------------------------------------------------


def test_options_of_the_command_line(tmp_path: Path) -> None:
    args = ["--steps", "7", "--beta", "0.8", "--state", "float64", "--adjoint", "backprop"]
    more = ["--compile", "--random-depth", "2", "5", "--parallel", "fsdp", "--clip", "None"]
    asked = command(tmp_path, *args, *more)
    model, training = asked.run.model, asked.run.training
    assert (model.steps, model.beta, model.state, model.adjoint) == (7, 0.8, "float64", "backprop")
    assert (training.compile, training.random_depth, training.clip) == (True, (2, 5), None)
    assert training.parallel == "fsdp"
    assert model.width == toy().model.width  # from the preset
    assert (asked.out, asked.resume) == (tmp_path, None)


def test_a_preset_by_name(tmp_path: Path) -> None:
    assert command(tmp_path, "--preset", "other").run == TOY["other"]
    assert parse(TOY, "", []).out == Path("runs/toy")
    assert parse(TOY, "", ["--preset", "other"]).out == Path("runs/other")


def test_a_configuration_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_dict(toy(batch=2))))
    assert command(tmp_path, "--config", str(file), "--lr", "0.5").run == toy(batch=2, lr=0.5)
    file.write_text(json.dumps({**to_dict(toy()), "modell": {}}))
    with pytest.raises(RunError, match="unknown key 'modell'"):
        command(tmp_path, "--config", str(file))
    file.write_text("{")
    with pytest.raises(RunError, match=r"config: .* cannot be read"):
        command(tmp_path, "--config", str(file))
    with pytest.raises(RunError, match="expected one of them at most"):
        command(tmp_path, "--config", str(file), "--preset", "toy")


@pytest.mark.parametrize("args", [("--stepz", "3"), ("--steps", "x"), ("--preset", "large")])
def test_an_unknown_option(
    args: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        command(tmp_path, *args)
    assert stop.value.code == 2
    assert args[0] in capsys.readouterr().err


def test_options_that_no_model_can_have(tmp_path: Path) -> None:
    with pytest.raises((RunError, SystemExit)):
        command(tmp_path, "--heads", "3")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    trainer(toy(updates=3), folder).train()
    return folder


def test_resuming_takes_the_configuration_of_the_checkpoint(trained: Path) -> None:
    asked = command(trained, "--resume", "--updates", "9", "--log-every", "5")
    assert asked.run == toy(updates=9, log_every=5)
    assert asked.resume and asked.resume.facts.update == 3
    assert command(trained, "--resume", "update-00000003").resume == asked.resume


def test_resuming_as_another_run_is_refused(trained: Path) -> None:
    with pytest.raises(RunError, match=r"got model\.beta 0\.8 against 0\.5; training\.batch 4 ag"):
        command(trained, "--resume", "--batch", "4", "--beta", "0.8")
    with pytest.raises(RunError, match="config, resume: expected one of them at most"):
        command(trained, "--resume", "--preset", "other")


def test_resuming_with_another_script_is_refused(trained: Path) -> None:
    with pytest.raises(RunError, match="its configuration is not one of this script and version"):
        parse(IMAGES, "", ["--out", str(trained), "--resume"])


def test_a_folder_in_use_is_refused(trained: Path) -> None:
    with pytest.raises(RunError, match="holds the checkpoints of a run; go on with it by --resume"):
        command(trained)


def test_a_script_says_what_is_wrong(tmp_path: Path) -> None:
    """In one line, before anything is trained, by the exit status too."""
    ran = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "train_image.py"), "--resume"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
    )
    assert ran.returncode == 1
    assert ran.stderr == "train_image: resume: no checkpoint in runs/digits/checkpoints\n"
    assert not ran.stdout


# ---- schedules, depths, evaluation -----------------------------------------------------------


def rates(training: Training, losses: list[float]) -> list[float]:
    """The learning rate of every update, and that of the one after."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=training.lr)
    schedule = schedule_for(optimizer, training)
    found = [optimizer.param_groups[0]["lr"]]
    for loss in losses:
        optimizer.step()
        schedule.step(torch.tensor(loss))
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_plateau_of_the_paper() -> None:
    """Half the rate at the tenth mean of 200 losses that is no better, as optax has it."""
    training = toy(schedule="plateau", warmup=0, lr=1.0).training
    found = rates(training, [2.0] * 200 + [1.0] * 200 + [3.0, 1.0] * 1050)
    assert found[: 200 * 12] == [1.0] * 2400
    assert found[200 * 12 : 200 * 12 + 50] == [0.5] * 50
    better = rates(training, [2.0] * 1800 + [1.0] * 200 + [2.0] * 1800)
    assert set(better) == {1.0}


def test_a_cosine_with_warmup() -> None:
    training = toy(updates=10, warmup=4, lr=1.0).training
    found = rates(training, [1.0] * 10)
    assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert found[7] == pytest.approx(0.55) and found[10] == pytest.approx(0.1)
    assert found == [share(i, training) for i in range(11)]
    constant = dataclasses.replace(training, schedule="constant")
    assert rates(constant, [1.0] * 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


def test_an_evaluation_counts_every_sample_once() -> None:
    """Also where the last batch is not full."""

    class Constant(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            weight = torch.arange(256.0).log1p()
            return weight.expand(*tokens.shape, 256)

    data = task()
    _, targets = data.evaluation(torch.arange(data.held_out))
    logits = torch.arange(256.0).log1p().expand(targets.numel(), 256)
    whole = nn.functional.cross_entropy(logits.double(), targets.flatten()).item()
    for batch in (1, 4, 10, 64):
        found = evaluate(Constant(), data, ALONE, batch=batch)
        assert found["held_out_loss"] == pytest.approx(whole, rel=1e-6)  # logits in float32
    few = evaluate(Constant(), data, ALONE, batch=4, samples=5)
    assert few["held_out_loss"] != found["held_out_loss"]


def test_random_depth_leaves_evaluation_alone(tmp_path: Path) -> None:
    run = trainer(toy(random_depth=(3, 5)), tmp_path)
    drawn = set()
    for _ in range(8):
        run.update()
        drawn.add(solver_figures(run.depth.layers)["steps"])
    assert drawn == {3, 4, 5}
    run.evaluate()
    assert solver_figures(run.depth.layers)["steps"] == toy().model.steps


def test_a_run_that_diverges_ends(tmp_path: Path) -> None:
    run = trainer(toy(), tmp_path)
    torch.nn.init.constant_(run.bare.get_parameter("norm_out.weight"), float("nan"))
    with pytest.raises(RunError, match="loss: nan in update 1: the run has diverged"):
        run.train()
