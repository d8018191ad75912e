"""The study of the reasoning model runs, and what the documents say of it is what was stored."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import study_reasoning as study
from tests import ROOT
from tests.models.recursing import questions, tiny
from tests.training.test_reasoning import task, toy  # noqa: F401  # a fixture

DOCS = ROOT / "docs"


def stored() -> list[study.Study]:
    return study.read(DOCS / "reasoning.jsonl")


def test_the_tables_are_those_of_the_results() -> None:
    text = (DOCS / "reasoning.md").read_text()
    shown = text.split("<!-- study:begin -->")[1].split("<!-- study:end -->")[0].strip()
    assert shown == "\n\n".join(study.table(one) for one in stored())


@pytest.mark.parametrize("one", stored(), ids=lambda one: one.setting["task"])
def test_what_was_stored_is_whole(one: study.Study) -> None:
    """Three seeds of every way, of which two have the same figures; and the costs aimed at."""
    seeds = {way: {run[0]["seed"] for run in one.runs(way)} for way in study.WAYS}
    assert set(map(frozenset, seeds.values())) == {frozenset({0, 1, 2})}
    for back, kept in zip(one.runs("reversible"), one.runs("stored"), strict=True):
        figures = [
            {r["update"]: (r["loss"], r["accuracy"], r["passes"]) for r in run}
            for run in (back, kept)
        ]
        both = figures[0].keys() & figures[1].keys()
        assert len(both) > 5
        assert all(figures[0][update] == figures[1][update] for update in both)
    peaks = one.setting["peak_bytes"]
    assert peaks["reversible"] <= 0.25 * peaks["stored"]
    assert one.update_seconds("reversible") <= 1.4 * one.update_seconds("stored")


def test_all_ways_begin_alike(task: study.SudokuTask) -> None:  # noqa: F811
    runs = [study.Run(way, 0, toy(), task) for way in study.WAYS]
    first, *others = [dict(run.trainer.bare.named_parameters()) for run in runs]
    for other in others:
        assert other.keys() == first.keys()
        assert all(torch.equal(value, first[name]) for name, value in other.items())
    tokens = runs[0].trainer.slots.tokens
    assert all(torch.equal(run.trainer.slots.tokens, tokens) for run in runs)
    for _ in range(2):
        for run in runs:
            run.update()
    losses = [run.loss.item() for run in runs]
    assert losses[0] == losses[1] and len(set(losses)) == 3  # of four ways two are one


def test_the_last_recursion_is_the_loop_of_the_cell() -> None:
    """With the gradient of a call of the cell from where the others ended."""
    torch.manual_seed(0)
    loop, tokens = study.LastRecursion(tiny(steps=2)), questions()
    x, _ = loop.embed(tokens)
    state = loop.start(3).z
    for _ in range(3):
        state = tuple(t.detach() for t in loop.cell(state, x))
    answer, latent = loop.cell((state[0], state[1]), x)
    output = loop(tokens)
    assert torch.equal(output.logits, loop.head(answer))
    assert torch.equal(output.carry.z[1], latent) and not output.carry.z[1].requires_grad
    want = torch.autograd.grad(loop.head(answer).square().sum(), loop.embedding.weight)
    got = torch.autograd.grad(output.logits.square().sum(), loop.embedding.weight)
    assert torch.equal(got[0], want[0])


def test_the_least_time_goes_next(tmp_path: Path) -> None:
    """So that all end with the same time: to within the longest update."""
    options = study.Options(
        preset="4x4", out=tmp_path, seeds=(0,), seconds=1.0, batch=8, held_out=16, passes=2,
        evaluate_every=2,
    )  # fmt: skip
    study.main(options)
    (one,) = study.read(tmp_path / "results.jsonl")
    last = {run[-1]["way"]: run[-1] for run in one.runs()}
    assert last.keys() == study.WAYS.keys()
    assert all(1.0 <= r["seconds"] < 2.0 for r in last.values())
    assert last["last recursion"]["update"] > last["reversible"]["update"]
    assert (tmp_path / "reasoning.png").stat().st_size > 10_000
    before = (tmp_path / "results.jsonl").read_text()
    study.main(dataclasses.replace(options, seconds=5.0))  # drawn again, not trained
    assert (tmp_path / "results.jsonl").read_text() == before
    setting = json.loads(before.splitlines()[0])
    assert setting["peak_bytes"]["reversible"] < setting["peak_bytes"]["stored"]


def test_accuracies_are_read_at_equal_updates_and_at_equal_time() -> None:
    def row(way: str, update: int, seconds: float, accuracy: float) -> study.Record:
        return {"way": way, "seed": 0, "update": update, "seconds": seconds, "accuracy": accuracy}

    slow = [row("reversible", n, 2.0 * n, 0.1 * n) for n in (1, 2, 3)]
    fast = [row("stored", n, 1.0 * n, 0.05 * n) for n in (1, 2, 3, 4, 5, 7)]
    one = study.Study({}, [*slow, *fast])
    assert (one.updates, one.seconds) == (3, 6.0)
    assert one.at("stored", "update", 3) == [pytest.approx(0.15)]
    assert one.at("stored", "seconds", 6.0) == [pytest.approx(0.25)]
    assert one.update_seconds("reversible") == 2.0
