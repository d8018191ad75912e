"""Train the same cell with several methods: `python examples/study.py`.

Only the method differs: initial weights, data, their order and the number of updates are the same.
The methods are the exact reversible solve, for several numbers of steps and betas; the fixed
point, by Anderson iteration, with the implicit and the phantom gradient; and an explicit layer,
which applies the cell once. Every run writes a line to results.jsonl, and is not repeated if it has
one. The figure shows all lines. Needs matplotlib and scikit-learn.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torch_revdeq import fixed_point
from torch_revdeq.models import LanguageConfig, LanguageModel, VisionConfig, VisionModel

try:
    import matplotlib  # noqa: F401  # for the figure, after all runs
    import sklearn  # noqa: F401  # for the images
    import tyro

    from training.config import ImageData, ImageRun, LanguageRun, TextData, Training
    from training.images import ImageTask, load_images
    from training.loop import Trainer
    from training.order import seed_of
    from training.parallel import Place
    from training.text import TextTask, load_text
except ModuleNotFoundError as error:
    raise SystemExit(f"study: {error}; pip install '.[examples,plot]' in the clone") from None

Method = Literal["reversible", "implicit", "phantom", "explicit"]
Record = dict[str, Any]

HELD_OUT_BYTES = 100_000
"""How much of the held-out text is used, since every run ends with an evaluation."""


@dataclass(frozen=True)
class Options:
    """Command line options."""

    out: Path = Path("runs/study")
    """Folder for results.jsonl and study.png."""
    text_updates: int = 200
    """Training updates of each run on text."""
    text_seeds: int = 1
    """Number of seeds for the runs on text."""
    image_updates: int = 80
    """Training updates of each run on digits."""
    image_seeds: int = 2
    """Number of seeds for the runs on digits."""
    steps: tuple[int, ...] = (1, 2, 4, 8)
    """Solver steps of the reversible runs (two evaluations of the cell each), not training
    updates."""
    betas: tuple[float, ...] = (0.5, 0.8)
    """Values of beta for the reversible runs."""
    evaluations: int = 16
    """Maximum evaluations of the cell in a solve for the fixed point."""
    tol: float = 1e-3
    """Relative residual at which a solve for the fixed point stops."""


@dataclass(frozen=True)
class Way:
    """A method of training the cell."""

    method: Method
    steps: int = 1
    beta: float = 0.5


class Limit(nn.Module):
    """Replaces a ``RevDEQ`` of the same cell: its fixed point, with another gradient."""

    def __init__(self, f: Callable[..., Tensor], method: Method, options: Options) -> None:
        super().__init__()
        self.f, self.method, self.options = f, method, options
        self.evaluations = self.residual = 0.0

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        """The fixed point z = f(z, x), from zeros."""
        adjoint: Any = self.method
        limits = {"tol": self.options.tol, "max_steps": self.options.evaluations}
        found = fixed_point(self.f, torch.zeros_like(x), x, *rest, adjoint=adjoint, **limits)
        self.evaluations, self.residual = found.stats.steps, found.stats.residual
        return found.z


class Explicit(nn.Module):
    """Replaces a ``RevDEQ`` of the same cell: applies the cell once."""

    def __init__(self, f: Callable[..., Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        """f(0, x)."""
        return self.f(torch.zeros_like(x), x, *rest)


def ways(options: Options) -> list[Way]:
    """All of them."""
    solves = [Way("reversible", n, beta) for beta in options.betas for n in options.steps]
    return [*solves, Way("implicit"), Way("phantom"), Way("explicit")]


def layer(f: Callable[..., Tensor], way: Way, options: Options) -> nn.Module:
    """The layer that replaces the ``RevDEQ``."""
    return Explicit(f) if way.method == "explicit" else Limit(f, way.method, options)


def text_trainer(way: Way, seed: int, options: Options, folder: Path) -> Trainer:
    """The bytes of the standard library; the last result is bits per byte."""
    config = LanguageConfig(
        vocab_size=256,
        width=48,
        heads=4,
        context=64,
        steps=way.steps,
        beta=way.beta,
        tied_head=False,
    )
    training = _training(options.text_updates, 16, seed, lr=5e-3)
    data = TextData()
    torch.manual_seed(seed_of(seed, "weights"))
    model = LanguageModel(config)
    if way.method != "reversible":
        model.equilibrium = layer(model.equilibrium.f, way, options)  # type: ignore[assignment]
    text = load_text(data)
    text = dataclasses.replace(text, held_out=text.held_out[:HELD_OUT_BYTES])
    task = TextTask(text, config.context)
    return Trainer(LanguageRun(config, data, training), model, task, _here(), folder)


def image_trainer(way: Way, seed: int, options: Options, folder: Path) -> Trainer:
    """Handwritten digits; the last result is the accuracy."""
    config = VisionConfig.single_scale(in_channels=1, steps=(way.steps,), beta=way.beta, tol=None)
    training = _training(options.image_updates, 64, seed, lr=3e-3)
    data = ImageData()
    torch.manual_seed(seed_of(seed, "weights"))
    model = VisionModel(config)
    if way.method != "reversible":
        model.stages[0] = layer(model.stages[0].f, way, options)  # type: ignore[arg-type]
    task = ImageTask(load_images(data), augment=data.augment)
    return Trainer(ImageRun(config, data, training), model, task, _here(), folder)


def _training(updates: int, batch: int, seed: int, **options: Any) -> Training:
    never = {"evaluate_every": updates, "checkpoint_every": updates, "log_every": updates}
    return Training(
        updates=updates, batch=batch, seed=seed, schedule="cosine", warmup=updates // 20, clip=1.0,
        device="cpu", **never, **options,
    )  # fmt: skip


def _here() -> Place:
    return Place(0, 1, torch.device("cpu"))


def run(kind: str, way: Way, seed: int, options: Options) -> Record:
    """Train with one method, and return the results."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The record has the residual, which shows whether the fixed point was reached.
        warnings.simplefilter("ignore", UserWarning)
        make = text_trainer if kind == "text" else image_trainer
        trainer = make(way, seed, options, Path(folder))
        result = trainer.train()
    limits = [module for module in trainer.bare.modules() if isinstance(module, Limit)]
    solves = [layer.stats for layer in trainer.depth.layers if layer.stats]
    return {
        "task": kind,
        **dataclasses.asdict(way),
        "seed": seed,
        "updates": trainer.updates,
        "evaluations": [*(s.nfe for s in solves), *(m.evaluations for m in limits), 1][0],
        "residual": [*(s.residual for s in solves), *(m.residual for m in limits), None][0],
        "cpu_seconds": round(time.process_time() - start, 1),
        **{key: result[key] for key in ("held_out_loss", "perplexity", "bits_per_byte", "accuracy")
           if key in result},
    }  # fmt: skip


FIGURES = {"text": ("bits_per_byte", "held-out bits per byte"), "image": ("accuracy", "accuracy")}
TICKS = [1, 2, 4, 8, 16]
COLOURS = {"implicit": "#009e73", "phantom": "#c1272d", "explicit": "#6b6b6b"}
OF_BETA = ("#0072b2", "#b07156", "#7a6fac")


def draw(records: list[Record], target: Path) -> None:
    """Figures against evaluations of the cell: a point for every run, a line through the means."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, (kind, (key, label)) in zip(axes, FIGURES.items(), strict=True):
        mine = [r for r in records if r["task"] == kind]
        betas = sorted({r["beta"] for r in mine if r["method"] == "reversible"})
        for i, beta in enumerate(betas):
            chosen = [r for r in mine if (r["method"], r["beta"]) == ("reversible", beta)]
            counts = sorted({r["evaluations"] for r in chosen})
            means = [_mean([r[key] for r in chosen if r["evaluations"] == n]) for n in counts]
            colour = OF_BETA[i % len(OF_BETA)]
            axis.plot(counts, means, color=colour, label=f"reversible, beta {beta}")
            points = [[r[name] for r in chosen] for name in ("evaluations", key)]
            axis.scatter(*points, s=12, color=colour)
        for method, colour in COLOURS.items():
            points = [
                [r[name] for r in mine if r["method"] == method] for name in ("evaluations", key)
            ]
            axis.scatter(*points, s=24, marker="x", color=colour, label=method)
        axis.set(xscale="log", xlabel="evaluations of the cell, forward", ylabel=label)
        axis.set_xticks(TICKS, list(map(str, TICKS)))
        axis.minorticks_off()
        axis.legend(frameon=False)
    figure.savefig(target, dpi=120)


def table(records: list[Record]) -> str:
    """Markdown: a row per method, with means over its seeds."""
    ways = list(dict.fromkeys((r["method"], r["steps"], r["beta"]) for r in records))
    rows = [
        "| way | steps | beta | evaluations, at most | digits: accuracy | held-out loss | CPU s "
        "| text: bits per byte | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, *rest in ways:
        mine = [r for r in records if [r["method"], r["steps"], r["beta"]] == [method, *rest]]
        image, text = ([r for r in mine if r["task"] == kind] for kind in ("image", "text"))
        reversible = method == "reversible"
        cells = [method, *map(str, rest if reversible else ("", ""))]
        cells.append(f"{max(r['evaluations'] for r in mine)}")
        cells += [_cell(image, "accuracy", ".1%"), _cell(image, "held_out_loss", ".3f")]
        cells.append(_cell(image, "cpu_seconds", ".0f"))
        cells += [_cell(text, "bits_per_byte", ".3f"), _cell(text, "cpu_seconds", ".0f")]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(records: list[Record], key: str, form: str) -> str:
    return format(_mean([r[key] for r in records]), form) if records else ""


def read(path: Path) -> list[Record]:
    """The records of a file, if it exists."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main(options: Options) -> None:
    """Run every method that has no line yet, and draw the figure."""
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    records = read(results)
    seeds = {"image": options.image_seeds, "text": options.text_seeds}
    for kind, count in seeds.items():
        for seed in range(count):
            for way in ways(options):
                known = {"task": kind, "seed": seed, **dataclasses.asdict(way)}
                if any(known.items() <= record.items() for record in records):
                    continue
                records.append(run(kind, way, seed, options))
                with results.open("a") as file:
                    file.write(json.dumps(records[-1]) + "\n")
                print(records[-1], flush=True)
    draw(records, options.out / "study.png")
    print(table(records))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
