"""The study runs, and what the documents say of it is what was stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import study
from tests import ROOT

DOCS = ROOT / "docs"
OPTIONS: dict[str, Any] = {"text_updates": 2, "image_updates": 2, "text_seeds": 1, "image_seeds": 1}


def test_the_table_is_that_of_the_results() -> None:
    text = (DOCS / "training.md").read_text()
    shown = text.split("<!-- study:begin -->")[1].split("<!-- study:end -->")[0].strip()
    assert shown == study.table(study.read(DOCS / "study.jsonl"))


def test_every_way_has_the_same_weights(tmp_path: Path) -> None:
    options = study.Options(**OPTIONS)
    trainers = [study.image_trainer(way, 0, options, tmp_path) for way in study.ways(options)]
    assert len(trainers) == 11
    first, *others = [dict(trainer.bare.named_parameters()) for trainer in trainers]
    for other in others:
        assert other.keys() == first.keys()
        assert all(torch.equal(value, first[name]) for name, value in other.items())


@pytest.mark.slow
def test_the_study_runs(tmp_path: Path) -> None:
    """Every way of both tasks; called again, it only draws."""
    options = study.Options(out=tmp_path, steps=(1, 2), betas=(0.8,), evaluations=4, **OPTIONS)
    study.main(options)
    records = study.read(tmp_path / "results.jsonl")
    assert [r["method"] for r in records] == 2 * [
        "reversible", "reversible", "implicit", "phantom", "explicit",
    ]  # fmt: skip
    assert [r["evaluations"] for r in records[:2]] == [2, 4]
    assert (tmp_path / "study.png").stat().st_size > 10_000
    study.main(options)
    assert study.read(tmp_path / "results.jsonl") == records
