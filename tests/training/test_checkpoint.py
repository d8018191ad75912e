"""Checkpoints are there whole or not at all, and a run goes on from whole ones of its own only."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from tests import ROOT
from tests.training.toy import ALONE, CutError, cut_after, resumed, task, toy, trainer
from torch_revdeq.models import LanguageConfig, LanguageModel
from training import checkpoint as checkpoints
from training.checkpoint import FACTS, OPTIMIZER, WEIGHTS, open_checkpoint
from training.errors import RunError
from training.state import apart

EARLIER, LATER = "update-00000003", "update-00000006"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("made")
    trainer(toy(), folder).train()
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    return shutil.copytree(made, tmp_path / "run")


def latest(folder: Path) -> Path:
    return folder / "checkpoints" / LATER


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in (folder / "checkpoints").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---- what is in one --------------------------------------------------------------------------


def test_what_a_checkpoint_holds(made: Path) -> None:
    names = {str(path.relative_to(made)) for path in (made / "checkpoints").rglob("*")}
    files = {f"checkpoints/{c}/{f}" for c in (EARLIER, LATER) for f in (WEIGHTS, OPTIMIZER, FACTS)}
    folders = {f"checkpoints/{name}" for name in (EARLIER, LATER, "latest")}
    assert names == {*files, *folders}
    facts = json.loads((latest(made) / FACTS).read_text())
    assert (facts["update"], facts["samples"]) == (6, 48)


def test_a_model_is_made_of_it(made: Path) -> None:
    """With what torch_revdeq and safetensors have, by whoever has the folder."""
    facts = json.loads((latest(made) / FACTS).read_text())
    model = LanguageModel(LanguageConfig.from_dict(facts["config"]["model"]))
    model.load_state_dict(load_file(latest(made) / WEIGHTS))
    tokens, _ = task().evaluation(torch.arange(2))
    expected = resumed(toy(), made).bare.eval()(tokens)
    assert torch.equal(model.eval()(tokens), expected)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    trainer(toy(checkpoint_every=1, keep=3), tmp_path).train()
    assert checkpoints.found(tmp_path) == [f"update-{i:08d}" for i in (4, 5, 6)]


def test_a_run_that_goes_back_keeps_what_it_writes(tmp_path: Path) -> None:
    """Checkpoints later than where it went back to are no reason to delete it."""
    trainer(toy(checkpoint_every=1, keep=4), tmp_path).train()
    run = resumed(toy(checkpoint_every=1), tmp_path, "update-00000003")
    with pytest.raises(CutError):
        run.train(cut_after(4))
    assert checkpoints.found(tmp_path) == [f"update-{i:08d}" for i in (3, 4, 5, 6)]
    assert resumed(toy(), tmp_path).updates == 4


def test_a_checkpoint_that_has_diverged_is_not_written(tmp_path: Path) -> None:
    """Also between the lines of the log, which say so too."""
    run = trainer(toy(checkpoint_every=1, log_every=100), tmp_path)
    torch.nn.init.constant_(run.bare.get_parameter("norm_out.weight"), float("nan"))
    with pytest.raises(RunError, match="loss: nan in update 1"):
        run.train()
    assert not checkpoints.found(tmp_path)


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    """Each is written with its own values."""
    both = torch.arange(6.0)
    weights = dict(apart({"a": both[:3], "b": both[2:], "c": both}))
    facts = checkpoints.Facts({}, "", 1, 8, {}, [])
    path = checkpoints.write(tmp_path, facts, {WEIGHTS: weights, OPTIMIZER: {}}, keep=1)
    read = load_file(path / WEIGHTS)
    assert torch.equal(read["a"], both[:3]) and torch.equal(read["b"], both[2:])
    assert torch.equal(read["c"], both)


# ---- one that cannot be gone on with ---------------------------------------------------------


class Spoiled(NamedTuple):
    file: str
    change: Any
    message: str


SPOILED = {
    "truncated": Spoiled(WEIGHTS, lambda b: b[:-100], "is truncated: expected"),
    "grown": Spoiled(OPTIMIZER, lambda b: b + b"0", "is corrupted: expected"),
    "another byte": Spoiled(
        WEIGHTS, lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:], "is corrupted: its digest"
    ),
    "facts truncated": Spoiled(FACTS, lambda b: b[:-30], "is corrupted"),
    "facts without a key": Spoiled(FACTS, lambda b: b.replace(b'"samples"', b'"s"'), "corrupted"),
    "no facts at all": Spoiled(FACTS, lambda b: b"[]", "is corrupted"),
    "another version": Spoiled(
        FACTS,
        lambda b: b.replace(b'"format": 1', b'"format": 99'),
        "expected checkpoint format",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_checkpoint_is_refused(folder: Path, name: str) -> None:
    file, change, message = SPOILED[name]
    path = latest(folder) / file
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before
    with pytest.raises(RunError, match=message) as error:
        open_checkpoint(folder)
    assert LATER in str(error.value)
    if name != "another version":
        assert f"resume from {EARLIER}" in str(error.value)
    assert resumed(toy(), folder, EARLIER).updates == 3  # the way out


def test_a_missing_file_is_an_error(folder: Path) -> None:
    (latest(folder) / OPTIMIZER).unlink()
    with pytest.raises(RunError, match=rf"cannot be read .*; resume from {EARLIER}"):
        open_checkpoint(folder)


def test_no_checkpoint_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="resume: no checkpoint in"):
        open_checkpoint(tmp_path / "nothing")
    (folder / "checkpoints" / "latest").unlink()
    with pytest.raises(RunError, match=f"there are {EARLIER}, {LATER}"):
        open_checkpoint(folder)


def test_a_checkpoint_of_another_model_is_refused(folder: Path) -> None:
    """By its shapes. Where it differs in its options, ``command.parse`` refuses it."""
    with pytest.raises(
        RunError, match=r"not the weights of this model: \d+ tensors differ"
    ) as error:
        resumed(toy({"width": 32}), folder)
    assert "(256, 16) there and (256, 32) here" in str(error.value)
    with pytest.raises(RunError, match="missing"):
        resumed(toy({"block": "paper"}), folder)


def test_other_data_is_refused(folder: Path) -> None:
    with pytest.raises(RunError, match="was trained on other data"):
        trainer(toy(), folder, "latest", ALONE, seed=5)


# ---- one that cannot be written --------------------------------------------------------------


def failing(name: str, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of the module raises from its so-manieth call on, as where no space is left."""
    function, calls = getattr(checkpoints, name), []

    def fail(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(*args, **options)

    monkeypatch.setattr(checkpoints, name, fail)


@pytest.mark.parametrize(
    ("name", "after"),
    [("save_file", 0), ("save_file", 1), ("_on_disk", 0), ("_write_text", 0), ("_replace", 0)],
)
def test_no_space_leaves_the_last_checkpoint(
    name: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(toy(), tmp_path)
    with pytest.raises(CutError):
        run.train(cut_after(3))
    before = contents(tmp_path)
    failing(name, after, monkeypatch)
    with pytest.raises(RunError) as error:
        run.train()
    assert f"{LATER}: cannot be written" in str(error.value)
    assert f"No space left on device); resume from {EARLIER}" in str(error.value)
    monkeypatch.undo()
    assert contents(tmp_path) == before
    assert resumed(toy(), tmp_path).updates == 3


@pytest.mark.slow
def test_a_file_system_that_refuses(folder: Path) -> None:
    """The same by the system: no file of this process may be larger than a limit."""
    limit = (latest(folder) / OPTIMIZER).stat().st_size // 2
    before = contents(folder)
    program = f"""
import resource, sys
from pathlib import Path
import torch
from tests.training.toy import toy, resumed
from training.errors import RunError
from training.state import apart
run = resumed(toy(updates=7), Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
try:
    run.train()
except RunError as error:
    print(error)
"""
    paths = [str(ROOT), str(ROOT / "examples")]
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{program}", str(folder)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert "update-00000007: cannot be written" in ran.stdout
    assert f"resume from {LATER}" in ran.stdout
    assert contents(folder) == before


def test_a_process_that_dies_while_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it leaves is no checkpoint, and the next run that writes takes it away."""
    run = trainer(toy(), tmp_path)
    with pytest.raises(CutError):
        run.train(cut_after(3))

    def die(*args: Any) -> None:
        raise CutError  # no error of the file system's, so nothing is cleaned up

    monkeypatch.setattr(checkpoints, "_replace", die)
    with pytest.raises(CutError):
        run.train()
    monkeypatch.undo()
    assert (tmp_path / "checkpoints" / f".{LATER}.unfinished").is_dir()
    again = resumed(toy(), tmp_path)
    assert again.updates == 3
    again.train()
    assert checkpoints.found(tmp_path) == [EARLIER, LATER]
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {EARLIER, LATER, "latest"}


def test_a_checkpoint_takes_the_place_of_a_spoiled_one(folder: Path) -> None:
    """As after going on from the one before."""
    good = contents(folder)
    (latest(folder) / WEIGHTS).write_bytes(b"spoiled")
    resumed(toy(), folder, EARLIER).train()
    assert contents(folder) == good


def test_too_little_room_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RunError, match="out: expected room for a checkpoint"):
        trainer(toy(), tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"out: .* cannot be created"):
        trainer(toy(), tmp_path / "file" / "run")
