"""Configurations and the command line: what is not as it must be is said before a run begins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import ROOT
from tests.training.toy import toy, trainer
from torch_revdeq.models import LanguageModel, VisionModel
from training.command import Command, parse
from training.config import ImageRun, LanguageRun, from_dict, to_dict
from training.errors import RunError
from training.presets import IMAGES, LANGUAGE

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
        ("training", {"random_depth": [3, 1]}, "random_depth: expected a minimum and a maximum"),
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
    with pytest.raises(RunError, match="preset, config: expected one of them"):
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
    for args in (("--heads", "3"), ("--adjoint", "functional", "--tol", "0.1")):
        with pytest.raises((RunError, SystemExit)):
            command(tmp_path, *args)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    trainer(toy(updates=3), folder).train()
    return folder


@pytest.mark.parametrize("state", [[], ["--state", "exact"]])
def test_an_adjoint_that_the_state_does_not_go_with(tmp_path: Path, state: list[str]) -> None:
    with pytest.raises(RunError, match=r"^state: expected float32 or float64 .* --state float32"):
        command(tmp_path, "--adjoint", "functional", *state)
    run = command(tmp_path, "--adjoint", "functional", "--state", "float32").run
    assert (run.model.adjoint, run.model.state) == ("functional", "float32")


def test_resuming_takes_the_configuration_of_the_checkpoint(trained: Path) -> None:
    asked = command(trained, "--resume", "--updates", "9", "--log-every", "5")
    assert asked.run == toy(updates=9, log_every=5)
    assert asked.resume and asked.resume.facts.update == 3
    assert command(trained, "--resume", "update-00000003").resume == asked.resume


def test_resuming_as_another_run_is_refused(trained: Path) -> None:
    with pytest.raises(RunError, match=r"got model\.beta 0\.8 against 0\.5; training\.batch 4 ag"):
        command(trained, "--resume", "--batch", "4", "--beta", "0.8")
    with pytest.raises(RunError, match=r"got training\.batch 4 against 8; leave"):
        command(trained, "--resume", "--preset", "other")
    same = command(trained, "--resume", "--preset", "toy", "--log-every", "7")  # the command again
    assert same.resume and same.run.training.log_every == 7


def test_resuming_with_another_script_is_refused(trained: Path) -> None:
    with pytest.raises(RunError, match="its configuration does not fit this script and version"):
        parse(IMAGES, "", ["--out", str(trained), "--resume"])


def test_a_folder_in_use_is_refused(trained: Path) -> None:
    with pytest.raises(RunError, match="holds the checkpoints of a run; continue it with --resume"):
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
