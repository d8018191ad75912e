"""A run that is asked to end keeps a checkpoint, says how to go on, and goes on with its bits."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.toy import losses, resumed, toy, trainer
from training import checkpoint as checkpoints
from training.command import script
from training.errors import RunError
from training.interruption import SIGNALS, InterruptedRunError, Interruption


def sending(number: int, after: int, times: int = 1) -> Callable[[int], None]:
    """For ``Trainer.train``: this process gets the signal after an update."""

    def on_update(done: int) -> None:
        for _ in range(times if done == after else 0):
            signal.raise_signal(number)  # by this thread: two of os.kill may count as one

    return on_update


@pytest.mark.parametrize("number", SIGNALS)
def test_a_checkpoint_is_kept_and_the_run_goes_on(number: int, tmp_path: Path) -> None:
    """Between two checkpoints; what is trained afterwards has the bits of a run without a cut."""
    run, before = toy(checkpoint_every=6), [signal.getsignal(n) for n in SIGNALS]
    trainer(run, tmp_path / "whole").train()
    cut = trainer(run, tmp_path / "cut")
    with pytest.raises(InterruptedRunError) as stop:
        cut.train(sending(number, after=3))
    assert stop.value.status == 128 + number
    assert str(stop.value) == (
        f"interrupted after update 4; checkpoint written to {tmp_path / 'cut' / 'checkpoints'}; "
        f"continue with --out {tmp_path / 'cut'} --resume"
    )
    assert checkpoints.found(tmp_path / "cut") == ["update-00000004"]
    assert [signal.getsignal(n) for n in SIGNALS] == before
    again = resumed(run, tmp_path / "cut")
    assert again.updates == 4
    again.train()
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer(toy(checkpoint_every=6), tmp_path).train(sending(signal.SIGINT, after=3, times=2))
    assert not checkpoints.found(tmp_path)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As in a background job: Ctrl-C is meant for the job in the foreground."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interruption = Interruption()
    with interruption.watched():
        signal.raise_signal(signal.SIGINT)
        assert interruption.signal is None
        signal.raise_signal(signal.SIGTERM)
        assert interruption.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_run_that_is_over_is_not_interrupted(tmp_path: Path) -> None:
    """The signal comes in its last update, whose checkpoint and result there will be anyway."""
    run = trainer(toy(), tmp_path)
    update = run.update

    def last() -> object:
        if run.updates == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return update()

    run.update = last  # type: ignore[method-assign,assignment]
    assert run.train()["update"] == 6


def test_other_threads_get_no_signals() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def watch() -> None:
        with Interruption().watched():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    with Interruption().watched(wanted=False):
        seen.append(signal.getsignal(signal.SIGINT))
    assert seen == [before, before]


@pytest.mark.parametrize(
    ("error", "status"),
    [(InterruptedRunError(signal.SIGTERM, 7, Path("runs/a")), 143), (RunError("no room"), 1)],
)
def test_a_script_ends_with_a_line(
    error: RunError, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        script("train_x", main)
    if status == 1:  # printed by Python itself
        assert stop.value.code == "train_x: no room"
    else:
        assert stop.value.code == status
        assert capsys.readouterr().err == (
            "train_x: interrupted after update 7; checkpoint written to runs/a/checkpoints; "
            "continue with --out runs/a --resume\n"
        )
