"""What is measured of one point: all methods on one model, at one beta, to one depth."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.core import ceilings, timing
from bench.core.memory import peak_bytes
from bench.core.session import Record, Session
from bench.solver import jax_peer, methods, models
from bench.solver.fresh import Problem, Processes
from bench.solver.methods import Method, Run, Skipped
from torch_revdeq import Stats

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

    `jax_python` is the interpreter that the JAX library is looked for in. `fresh` has a process
    for each method, in which its peaks are measured; without, they are measured where times are.
    `matmul` holds the ceilings, operations a second, by dtype.
    """

    device: torch.device
    threads: int | None
    rounds: int | None = None
    sample_seconds: float = 0.1
    jax_python: str = sys.executable
    fresh: Processes | None = None
    matmul: Mapping[str, float] = field(default_factory=dict)

    def rounds_of(self, point: Point) -> int:
        """Samples that each method takes at this point."""
        return self.rounds or (5 if point.steps <= SHALLOW else 3)


def settings_of(session: Session, fresh: Processes | None = None) -> Settings:
    """How to measure."""
    return Settings(
        session.device,
        session.threads,
        rounds=session.chosen.samples or (None if session.tier == "full" else 3),
        sample_seconds=session.sample_seconds,
        jax_python=session.chosen.jax_python,
        fresh=fresh,
        matmul=ceilings.of(session).matmul,
    )


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
            except Exception as error:  # printed and stored; makes the run fail if it is a fault
                yield blank | {"refused": timing.reason(error)}
            else:
                admitted.append((contender, blank | figures))
        references.forget()
        contenders = [contender for contender, _ in admitted]
        times = _times(contenders, settings, point) if point.part != "error" else {}
    operations = operations_of(model, point.steps) if times else 0
    for contender, record in admitted:
        if contender.failure is None:
            found = times.get(contender.provider.name, {})
            ceiling = settings.matmul.get(record["dtypes"]["f"])
            yield record | found | _rates(operations, found, ceiling)
        else:
            yield record | {"refused": contender.failure}
    yield from missing


def _admit(
    point: Point,
    settings: Settings,
    method: Method,
    references: _References,
    processes: contextlib.ExitStack,
) -> tuple[timing.Contender, Record]:
    """A run, ready to be raced, and all its figures except time."""
    del processes
    run = Run(method, references.model(method), point.beta, point.steps)
    run, grads, stats = run.settled()
    figures = _error_figures(grads, references(method), stats) | {"raises": run.check is not True}
    del grads
    if point.part != "error":
        # What torch.compile has made is in this process; another one would make it again.
        if settings.fresh is not None and not method.compiled:
            problem = _problem(point, settings, run)
            figures["peak_bytes"] = settings.fresh.ask(method.name, problem).peak
            figures["peak_in"] = "a fresh process"
        else:
            figures["peak_bytes"] = peak_bytes(run.whole, settings.device)
            figures["peak_in"] = "the process of the times"
    return timing.alone(method.name, method.kind, run.gradients), figures


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
    about = {"raises": False, "peak_in": "the compiler's account"}
    return jax_peer.Remote(worker, method), figures | about | worker.ready


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
    )
    running = [contender for contender in contenders if contender.failure is None]
    medians = {c.provider.name: timing.quantile(c.samples, 0.5) for c in running}
    loop = medians.get(methods.LOOP.name)
    return {
        contender.provider.name: {
            "samples": len(contender.samples),
            "calls_per_sample": contender.count,
            **timing.quantiles(contender.samples),
            "ratio_to_loop": loop and medians[contender.provider.name] / loop,
        }
        for contender in running
    }


def _rates(operations: int, times: Record, ceiling: float | None) -> Record:
    """What f and its products come to, over the time; evaluating f again is no progress."""
    if not operations:  # no time, or an f without matrix products
        return {}
    rate = operations / times["p50_seconds"]
    return {
        "operations": operations,
        "tflop_per_second": rate * 1e-12,
        "share_of_matmul": None if ceiling is None else rate / ceiling,
    }


def _problem(point: Point, settings: Settings, run: Run) -> Problem:
    """The same step as `run`, for another process."""
    return Problem(
        run.method,
        point.model,
        point.sizes,
        point.beta,
        point.steps,
        settings.device,
        settings.threads,
        run.check,
    )


def operations_of(model: models.Model, steps: int) -> int:
    """Of f and of its two products, in all half steps: what no method can do without.

    Each matrix product and convolution has two of its size in the backward pass.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.f(model.z0, model.x)
    return 3 * 2 * steps * counter.get_total_flops()


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
