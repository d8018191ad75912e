"""Train one recursive reasoning model with four methods: `python examples/study_reasoning.py`.

Only the method differs. Initial weights, puzzles, their order, and the number of recursions per
pass are the same.

- reversible: differentiates every recursion and stores none.
- stored: differentiates every recursion and stores all.
- last step: differentiates the last step of the solve, which is two recursions.
- last recursion: uses no solve. Applies the recursions one after another and differentiates the
  last one, as in TRM (arXiv 2510.04871).

The runs take turns, update by update: the run with the least CPU time so far goes next. So all runs
see the same machine load and end with the same CPU time. Every evaluation writes a line to
results.jsonl, from which the table and the figure are made. Needs matplotlib.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_revdeq.models import Carry, RecursiveModel
from torch_revdeq.models.recursive import Output
from torch_revdeq.runtime.peak_memory import peak_bytes

try:
    import matplotlib  # noqa: F401  # for the figure, after all runs
    import tyro

    from training.config import ReasoningRun
    from training.order import seed_of
    from training.parallel import Place
    from training.presets import REASONING
    from training.reasoning import ReasoningTrainer
    from training.sudoku import SudokuTask, load_sudoku
except ModuleNotFoundError as error:
    raise SystemExit(
        f"study_reasoning: {error}; pip install '.[examples,plot]' in the clone"
    ) from None

ROOT = Path(__file__).resolve().parents[1]
Record = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Command line options."""

    preset: str = "6x6"
    """Preset of train_reasoning.py: model, puzzles and training."""
    out: Path = Path("runs/study_reasoning")
    """Folder for results.jsonl and reasoning.png."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights, order and halting; the puzzles are the same for all."""
    seconds: float = 120
    """CPU seconds of each run."""
    batch: int = 32
    """Puzzles per update."""
    held_out: int = 192
    """Held-out puzzles that every evaluation solves."""
    passes: int = 6
    """Maximum passes per puzzle."""
    evaluate_every: int = 50
    """Training updates between evaluations."""


class LastRecursion(RecursiveModel):
    """Applies the same cell equally often, to one state, and differentiates the last recursion."""

    def forward(self, tokens: Tensor, carry: Carry | None = None) -> Output:
        """One pass of 2 `steps` recursions."""
        x, rotation = self.embed(tokens)
        state = (self.start(len(tokens)) if carry is None else carry).z
        with torch.no_grad():
            for _ in range(2 * self.config.steps - 1):
                state = self.cell(state, x, rotation)
        answer, latent = self.cell(state, x, rotation)
        halted = (answer.detach(), latent.detach())
        halt = self.halt(answer.mean(1))[:, 0]
        return Output(self.head(answer), halt, Carry(halted, halted))


WAYS: dict[str, tuple[type[RecursiveModel], dict[str, Any]]] = {
    "reversible": (RecursiveModel, {}),
    "stored": (RecursiveModel, {"adjoint": "backprop"}),
    "last step": (RecursiveModel, {"backward_steps": 1}),
    "last recursion": (LastRecursion, {}),
}
"""The model of each method, and options of its solver."""


class Run:
    """A model in training with one method, with its own clock."""

    def __init__(self, way: str, seed: int, run: ReasoningRun, task: SudokuTask) -> None:
        self.way, self.seed = way, seed
        training = dataclasses.replace(run.training, seed=seed)
        run = dataclasses.replace(run, training=training)
        kind, options = WAYS[way]
        torch.manual_seed(seed_of(seed, "weights"))
        model = kind(run.model, **options)
        here = Place(0, 1, torch.device("cpu"))
        with tempfile.TemporaryDirectory() as folder:  # for checkpoints, of which there are none
            self.trainer = ReasoningTrainer(run, model, task, here, Path(folder))
        self.seconds, self.loss = 0.0, torch.tensor(torch.nan)

    def update(self) -> None:
        """One update, on this run's clock, which counts CPU time and no waiting."""
        begin = time.process_time()
        self.loss, _ = self.trainer.update()
        self.seconds += time.process_time() - begin

    def record(self) -> Record:
        """An evaluation; the clock is stopped."""
        found = self.trainer.evaluate()
        shown = {k: round(found[k], 5) for k in ("accuracy", "cell_accuracy", "passes")}
        return {
            "way": self.way, "seed": self.seed, "update": self.trainer.updates,
            "seconds": round(self.seconds, 3), "loss": round(self.loss.item(), 5), **shown,
        }  # fmt: skip


def configured(options: Options) -> ReasoningRun:
    """The preset with the study's changes: a constant rate, which does not depend on the end."""
    run = REASONING[options.preset]
    changes: dict[str, Any] = {"batch": options.batch, "schedule": "constant", "threads": 1}
    return dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, held_out=options.held_out),
        training=dataclasses.replace(run.training, device="cpu", **changes),
        reasoning=dataclasses.replace(run.reasoning, passes=options.passes),
    )


def setting(options: Options, run: ReasoningRun, task: SudokuTask) -> Record:
    """Common to all runs: sizes, machine, and the peak memory of an update with each method."""
    peaks = {}
    for way in WAYS:
        one = Run(way, 0, run, task)
        one.update()  # the gradients' and the optimizer's memory stays
        peaks[way] = peak_bytes(one.update, torch.device("cpu"))
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "task": options.preset, "commit": commit.stdout.strip(), "machine": _processor(),
        "torch": torch.__version__, "threads": 1,
        "batch": options.batch, "held_out": task.held_out, "puzzles": task.size,
        "passes": options.passes, "recursions": 2 * run.model.steps,
        "parameters": sum(p.numel() for p in RecursiveModel(run.model).parameters()),
        "peak_bytes": peaks,
    }  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def train(options: Options, results: Path) -> None:
    """Run all methods and seeds in turns, and write every evaluation at once."""
    run = configured(options)
    task = SudokuTask(load_sudoku(run.data), augment=run.data.augment)
    _write(results, setting(options, run, task))
    going = [Run(way, seed, run, task) for seed in options.seeds for way in WAYS]
    while going:
        one = min(going, key=lambda run: run.seconds)
        one.update()
        ended = one.seconds >= options.seconds
        if ended or one.trainer.updates % options.evaluate_every == 0:
            _write(results, {"task": options.preset, **one.record()})
        if ended:
            going.remove(one)


def _write(results: Path, record: Record) -> None:
    with results.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(record, flush=True)


# ---- results ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """The lines of one task: its setting, and the evaluations of its runs."""

    setting: Record
    evaluations: list[Record]

    @property
    def updates(self) -> int:
        """The last update after which every run was evaluated."""
        return max(set.intersection(*({r["update"] for r in run} for run in self.runs())))

    @property
    def seconds(self) -> float:
        """The CPU time that every run has reached."""
        return min(max(r["seconds"] for r in run) for run in self.runs())

    def runs(self, way: str | None = None) -> list[list[Record]]:
        """The evaluations of each run, in order."""
        mine = [r for r in self.evaluations if way in (None, r["way"])]
        keys = dict.fromkeys((r["way"], r["seed"]) for r in mine)
        return [[r for r in mine if (r["way"], r["seed"]) == key] for key in keys]

    def at(self, way: str, key: str, most: float) -> list[float]:
        """The accuracy of each run of a method, at its last evaluation with `key` up to `most`."""
        return [[r for r in run if r[key] <= most][-1]["accuracy"] for run in self.runs(way)]

    def update_seconds(self, way: str) -> float:
        """Mean CPU time of an update."""
        last = [run[-1] for run in self.runs(way)]
        return sum(r["seconds"] for r in last) / sum(r["update"] for r in last)


def read(path: Path) -> list[Study]:
    """The studies of a file, one for each task."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    settings = {r["task"]: r for r in records if "peak_bytes" in r}
    return [
        Study(setting, [r for r in records if r["task"] == task and "way" in r])
        for task, setting in settings.items()
    ]


def table(study: Study) -> str:
    """Markdown: a row per method; accuracies as mean, minimum and maximum over its seeds."""
    time_of, peaks = study.update_seconds, study.setting["peak_bytes"]
    rows = [
        f"| {study.setting['task']} | memory of an update | of stored | time of an update "
        f"| of stored | solved after {study.updates} updates "
        f"| solved after {study.seconds:.0f} s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for way in WAYS:
        cells = [
            way,
            f"{peaks[way] / 2**20:.1f} MiB",
            f"{peaks[way] / peaks['stored']:.2f}x",
            f"{1e3 * time_of(way):.0f} ms",
            f"{time_of(way) / time_of('stored'):.2f}x",
            _spread(study.at(way, "update", study.updates)),
            _spread(study.at(way, "seconds", study.seconds)),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _spread(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.1%} ({min(values):.1%} to {max(values):.1%})"


COLORS = dict(zip(WAYS, ("#0072b2", "#6b6b6b", "#009e73", "#c1272d"), strict=True))


def draw(studies: list[Study], target: Path) -> None:
    """Accuracy against updates and against time: a line for every run."""
    import matplotlib.pyplot as plt

    shape = (len(studies), 2)
    figure, grid = plt.subplots(
        *shape, figsize=(10, 4 * len(studies)), layout="constrained", squeeze=False
    )
    labels = {"update": "updates", "seconds": "processor time (s)"}
    for study, axes in zip(studies, grid, strict=True):
        for axis, (key, label) in zip(axes, labels.items(), strict=True):
            for way, color in COLORS.items():
                # The stored run has the bits of the reversible one: dashes show both.
                style = "--" if way == "stored" else "-"
                for i, run in enumerate(study.runs(way)):
                    points = [[r[name] for r in run] for name in (key, "accuracy")]
                    named = way if not i else None
                    axis.plot(*points, style, color=color, linewidth=1.2, label=named)
            axis.set(xlabel=label, ylabel=f"{study.setting['task']}: held-out puzzles solved")
            axis.set_ylim(-0.02, 1.02)
        # The reversible runs have the stored ones' curve, of which these have had more.
        axes[0].set_xlim(0, max(run[-1]["update"] for run in study.runs("stored")))
        axes[0].legend(frameon=False)
    figure.savefig(target, dpi=120)


def main(options: Options) -> None:
    """Train unless there are results, and draw the figure."""
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    if not results.exists():
        train(options, results)
    studies = read(results)
    draw(studies, options.out / "reasoning.png")
    print("\n\n".join(map(table, studies)))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
