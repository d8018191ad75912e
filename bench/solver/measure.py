"""What is measured of one point: all methods on one model, at one beta, to one depth."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench import timing
from bench.case import Provider
from bench.harness import Record
from bench.solver import jax_peer, methods, models
from bench.solver.memory import peak_bytes
from bench.solver.methods import Method, Run, Skipped
from torch_revdeq import ReconstructionError, Stats

COST_DEPTHS = {0.5: (2, 4, 8, 16, 32), 0.8: (2, 8, 32)}
OPTIONS_DEPTHS = (4,)
PEERS_DEPTHS = (2, 8, 32)
ERROR_DEPTHS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
ERROR_BETAS = (0.5, 0.8, 0.9)
# Below this many steps a sample is short enough for two more of them.
SHALLOW = 8


@dataclass(frozen=True)
class Point:
    """What is compared at once. In the part "error" neither time nor memory is measured."""

    part: str
    model: str
    sizes: models.Sizes
    beta: float
    steps: int
    methods: tuple[Method, ...]


@dataclass(frozen=True)
class Settings:
    """How a run measures: `rounds` samples of each method, each of `sample_seconds` or more.

    `jax_python` is the interpreter that the JAX library is looked for in.
    """

    device: torch.device
    threads: int | None
    rounds: int | None = None
    sample_seconds: float = 0.1
    jax_python: str = sys.executable

    def rounds_of(self, point: Point) -> int:
        """Samples that each method takes at this point."""
        return self.rounds or (5 if point.steps <= SHALLOW else 3)


def measure(point: Point, settings: Settings, model: models.Model) -> Iterator[Record]:
    """One record for each method; one that raises, or is not there, has its reason in it."""
    # Every point has graphs of its own, of which torch.compile keeps eight for a function.
    torch.compiler.reset()
    references = _References(model, point)
    admitted: list[tuple[timing.Contender, Record]] = []
    missing: list[Record] = []
    with contextlib.ExitStack() as processes:
        for method in point.methods:
            blank = blank_record(point, settings, method, model)
            admit = _admit_jax if method.jax else _admit
            try:
                contender, figures = admit(point, settings, method, references, processes)
            except Skipped as reason:
                missing.append(blank | {"skipped": str(reason)})
            except Exception as error:  # printed, stored, and makes the run fail
                yield blank | {"refused": f"{type(error).__name__}: {error}"}
            else:
                admitted.append((contender, blank | figures))
        references.forget()
        contenders = [contender for contender, _ in admitted]
        times = _times(contenders, settings, point) if point.part != "error" else {}
    for contender, record in admitted:
        failure = contender.failure if isinstance(contender, jax_peer.Remote) else None
        yield record | ({"refused": failure} if failure else times.get(contender.provider.name, {}))
    yield from missing


def _admit(
    point: Point,
    settings: Settings,
    method: Method,
    references: _References,
    processes: contextlib.ExitStack,
) -> tuple[timing.Contender, Record]:
    """A run, ready to be raced, and its figures but for time."""
    del processes
    run = Run(method, references.model(method), point.beta, point.steps)
    run, figures = _errors(run, references(method))
    if point.part != "error":
        figures["peak_bytes"] = peak_bytes(run.gradients, settings.device)
    return _contender(run), figures


def _admit_jax(
    point: Point,
    settings: Settings,
    method: Method,
    references: _References,
    processes: contextlib.ExitStack,
) -> tuple[timing.Contender, Record]:
    """The same of the JAX library, in a process that ends with `processes`."""
    start = jax_peer.Worker(
        settings.jax_python,
        method,
        references.model(method),
        point.beta,
        point.steps,
        settings.device,
        settings.threads,
    )
    worker = processes.enter_context(start)
    figures = _error_figures(worker.gradients(), references(method), None)
    return jax_peer.Remote(worker, method), figures | {"raises": False} | worker.ready


class _References:
    """The model and the float64 gradient for each dtype of f, made where they are first used."""

    def __init__(self, model: models.Model, point: Point) -> None:
        self.models = {model.dtype: model}
        self.first = model
        self.point = point
        self.gradients: dict[torch.dtype, Sequence[Tensor]] = {}

    def model(self, method: Method) -> models.Model:
        """The model with f in the method's dtype."""
        if method.f not in self.models:
            self.models[method.f] = self.first.to(method.f)
        return self.models[method.f]

    def __call__(self, method: Method) -> Sequence[Tensor]:
        """The float64 gradient of the numbers, perhaps rounded ones, that the method has."""
        if method.f not in self.gradients:
            self.gradients[method.f] = methods.reference_gradients(
                self.model(method), self.point.beta, self.point.steps
            )
        return self.gradients[method.f]

    def forget(self) -> None:
        """Let go of the gradients before time is taken."""
        self.gradients.clear()


def _errors(run: Run, reference: Sequence[Tensor]) -> tuple[Run, Record]:
    """The errors of a run, and the run with the first check that does not raise.

    True is a user's. Past the precision of a float state it raises; infinity lets every distance
    pass, and False what is no number any more.
    """
    for check in (True, math.inf, False):
        run = replace(run, check=check)
        try:
            grads, stats = run.gradients_and_stats()
        except ReconstructionError:
            if check is False or not run.method.reconstructs:
                raise
        else:
            return run, _error_figures(grads, reference, stats) | {"raises": check is not True}
    raise AssertionError("unreachable: without a check nothing raises ReconstructionError")


def _error_figures(
    grads: Sequence[Tensor], reference: Sequence[Tensor], stats: Stats | None
) -> Record:
    return {
        "gradient_error": finite(relative_distance(grads, reference)),
        "reconstruction_error": finite(None if stats is None else stats.reconstruction_error),
        "state_bytes": None if stats is None else stats.state_bytes,
        "frac_bits": None if stats is None else stats.frac_bits,
    }


def relative_distance(grads: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The norm of the difference over that of the reference, all parameters taken as one vector."""
    pairs = list(zip(grads, reference, strict=True))
    difference = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    return math.sqrt(difference / sum(float(b.double().square().sum()) for _, b in pairs))


def finite(value: float | None) -> float | None:
    """A number that JSON has a word for; None for Inf and NaN."""
    return value if value is not None and math.isfinite(value) else None


def _times(
    contenders: Sequence[timing.Contender], settings: Settings, point: Point
) -> dict[str, Record]:
    """By name of the method: its samples, taken in turn, and their ratio to the loop's."""
    timing.race(
        contenders,
        timing.CLOCKS[settings.device.type],
        rounds=settings.rounds_of(point),
        minimum=settings.sample_seconds,
        on_sample=lambda: None,
    )
    medians = {c.provider.name: timing.quantile(c.samples, 0.5) for c in contenders}
    loop = medians.get(methods.LOOP.name)
    return {
        contender.provider.name: {
            "samples": len(contender.samples),
            "calls_per_sample": contender.count,
            "p20_seconds": timing.quantile(contender.samples, 0.2),
            "p50_seconds": medians[contender.provider.name],
            "p80_seconds": timing.quantile(contender.samples, 0.8),
            "ratio_to_loop": loop and medians[contender.provider.name] / loop,
        }
        for contender in contenders
    }


def _contender(run: Run) -> timing.Contender:
    """A run in the race. What it computes has been measured already, so no gate is needed."""

    def bind(tensors: object) -> Callable[[], object]:
        return run.gradients

    provider = Provider(run.method.name, run.method.kind, bind, expected=bind)
    return timing.Contender(provider, [run.gradients])


def blank_record(point: Point, settings: Settings, method: Method, model: models.Model) -> Record:
    """What a line says of any figure."""
    dtypes = {"state": method.state or method.f, "f": method.f}
    return {
        "benchmark": "solver",
        "part": point.part,
        "op": point.model,
        "provider": method.name,
        "kind": method.kind,
        "adjoint": method.adjoint,
        "dtypes": {role: str(dtype).removeprefix("torch.") for role, dtype in dtypes.items()},
        "beta": point.beta,
        "steps": point.steps,
        "elements": model.z0.numel(),
        "parameters": sum(parameter.numel() for parameter in model.parameters),
        "threads": settings.threads,
        "refused": None,
        "skipped": None,
    }
