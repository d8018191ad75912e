"""The training loop: what an update does, schedules, depths, evaluations, the log."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training.toy import ALONE, losses, task, toy, trainer
from training import logs
from training.config import Training
from training.errors import RunError
from training.evaluation import evaluate
from training.logs import solver_figures
from training.schedule import schedule_for, share

# ---- updates ---------------------------------------------------------------------------------


def test_an_update_is_one_of_adamw(tmp_path: Path) -> None:
    """The same by hand: the first batch of the order, one backward pass, one step."""
    options = {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.3}
    run = trainer(toy(schedule="constant", warmup=0, clip=None, **options), tmp_path)
    model = trainer(toy(), tmp_path / "other").bare  # of the same seed, so with the same weights
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    inputs, targets = run.task.training(*run.order.take(0, 8))
    loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    loss.backward()
    optimizer.step()
    assert run.update()[0].item() == loss.item()
    pairs = zip(run.bare.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(mine, by_hand) for mine, by_hand in pairs)


def test_clipping(tmp_path: Path) -> None:
    """The gradient has the norm that is allowed; what is reported is that before."""
    found = {}
    for clip in (None, 1e-3):
        run = trainer(toy(clip=clip), tmp_path / str(clip))
        _, norm = run.update()
        gradients = [p.grad for p in run.bare.parameters() if p.grad is not None]
        found[clip] = (norm.item(), nn.utils.get_total_norm(gradients).item())
    assert found[None][0] == found[1e-3][0] == pytest.approx(found[None][1])
    assert found[1e-3][1] == pytest.approx(1e-3, rel=1e-4)  # clip_grad_norm_ adds 1e-6 to the norm


def test_bfloat16_is_autocast(tmp_path: Path) -> None:
    """Other losses, by some roundings of bfloat16, 2^-9 each; parameters stay in float32."""
    trainer(toy(), tmp_path / "float32").train()
    run = trainer(toy(precision="bfloat16"), tmp_path / "bfloat16")
    run.train()
    assert {p.dtype for p in run.bare.parameters()} == {torch.float32}
    single, half = losses(tmp_path / "float32"), losses(tmp_path / "bfloat16")
    assert half != single and half == pytest.approx(single, rel=8 * 2**-9)


def test_the_log(tmp_path: Path) -> None:
    trainer(toy(log_every=2), tmp_path).train()
    records = logs.read(tmp_path / "log.jsonl")
    assert [r["update"] for r in records if r["kind"] == "training"] == [2, 4, 6]
    first, last = records[0], records[-1]
    assert first["steps"] == 2 and first["reconstruction_error"] == 0.0
    assert 0 < first["residual"] < 2 and first["per_second"] > 0 and first["peak_memory"] > 2**20
    assert first["lr"] == pytest.approx(0.01 * share(2, toy().training))  # of the update to come
    assert last["perplexity"] == pytest.approx(2 ** last["bits_per_byte"])


def test_a_model_learns(tmp_path: Path) -> None:
    """Four equally probable successors: from 8 bits to near 2."""
    result = trainer(toy(updates=60, lr=3e-2, evaluate_every=60, log_every=60), tmp_path).train()
    assert result["bits_per_byte"] < 3.5


# ---- schedules -------------------------------------------------------------------------------


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


# ---- evaluations, depths, divergence ---------------------------------------------------------


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
