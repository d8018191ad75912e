"""A solve as plain PyTorch operations, unrolled over the half steps, including f.

For torch.export, whose programs run elsewhere, and for tensors without data (the meta device,
FakeTensorMode). Imported only for those, because it imports the compiler. No values are read and
nothing is written in place. z and y are bitwise those of ``solve``: the operations are the
reference definitions in ``revdeq_kernels.reference``. Autograd differentiates them. Where ``solve``
would raise because of a value, z and y are NaN here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Mapping as Dict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..evaluation.adjoint import Adjoint
from ..evaluation.auxiliary import Auxiliary
from ..evaluation.flat_function import FlatFunction, flatten
from ..iteration.beta import BetaSchedule
from ..iteration.halting import Halting
from ..iteration.stopping import StoppingRule
from ..options.call import drawn, format_of, fractional_bits, masks, second_start
from ..options.reading import steps_to_save, with_defaults
from ..options.table import TABLE
from ..solution import Solution, Stats
from ..state.pair import Leaves
from ..state.unrolled import Arrived, ExactSteps, FloatSteps, cut

_OF_TENSORS = ("y0", "beta", "kwargs", "residual_mask")


def solve_unrolled(
    f: Callable[..., Any], z0: Any, args: Sequence[Any], options: Dict[str, Any]
) -> Solution:
    """``solve(f, z0, *args, **options)``; ValueError for an option not supported here.

    With a `tol`, all max_steps steps run, but what has converged stays constant. `trace` has no
    effect: a program has no statistics.
    """
    if options.get("on_step") is not None:
        raise TypeError(
            "on_step: expected None in torch.export and with tensors without data, got a function, "
            "which a program does not call; leave on_step out there"
        )
    leaves, structure = flatten("z0", z0)
    y0 = second_start(options.get("y0"), leaves, structure)
    beta = options.get("beta", 0.5)
    learned = beta if isinstance(beta, Tensor) else None
    form = format_of(TABLE["state"].read(options.get("state", "auto")), leaves)
    rest = {name: value for name, value in options.items() if name not in _OF_TENSORS}
    exporting, waits = torch.compiler.is_exporting(), leaves[0].device.type != "cpu"
    plan = _settled(None if learned is not None else beta, rest, form.exact, exporting, waits)
    pass_step, has_aux = options.get("pass_step", False), options.get("has_aux", False)
    mapping = FlatFunction(f, leaves, structure, has_aux=has_aux, pass_step=pass_step)
    tensors = mapping.take_args(tuple(args), options.get("kwargs"))
    auxiliary = Auxiliary(options.get("aux", "sum"), len(leaves)) if has_aux else None
    masked = masks(options.get("residual_mask"), leaves, structure)

    def evaluate(k: int, read: Leaves) -> Leaves:
        """f in half step k; collects aux."""
        out = mapping(read, tensors, k // 2)
        if k < 2 * plan.first_step:
            out = [cut(t) if t.is_floating_point() else t for t in out]
        return out if auxiliary is None else auxiliary.take(k, out)

    value = evaluate(0, [leaf.view_as(leaf) for leaf in leaves])
    layout = form.layout([v.dtype for v in value], [leaf.dtype for leaf in leaves])
    if not (form.exact or form.plain):
        raise NotImplementedError(
            f"state: expected one that a compiler can trace, got {form.name}; choose a float dtype"
        )
    pair: Any = ExactSteps if form.exact else FloatSteps
    pair = pair(leaves, y0, value, layout, plan.numbers, learned, plan.bits)
    arrived = None
    if plan.dims and not torch.compiler.is_dynamo_compiling():
        Halting(leaves, plan.dims, plan.tol, plan.check_every)  # checks the shapes
    if plan.tol is not None:
        arrived = Arrived(plan.tol, plan.dims, plan.lag, leaves, masked)
    saved = []
    for n in range(plan.steps):
        if n:
            if n == plan.first_step:
                pair.cut()
            value = evaluate(2 * n, pair.read(pair.z))
        moving = None if arrived is None else arrived.moving
        pair.y = pair.updated(pair.y, n, 0, value, moving)
        read = pair.read(pair.y)
        value = evaluate(2 * n + 1, read)
        pair.z = pair.updated(pair.z, n, 1, value, moving)
        if arrived is not None and (n + 1) % plan.check_every == 0:
            arrived.judge([cut(t) for t in read], [cut(t) for t in value])
        if n + 1 in plan.save_at:
            read = pair.read(pair.z)
            saved.append((n + 1, [cut(t) for t in read] if n < plan.first_step else read))
    z, y = pair.checked(pair.read(pair.z)), pair.checked(pair.read(pair.y))
    by_step = {step: mapping.unflatten(pair.checked(read)) for step, read in saved}
    stats = Stats(plan.steps, form.name, plan.adjoint, 0, frac_bits=plan.bits, tol=plan.tol)
    ends = mapping.unflatten(z), mapping.unflatten(y)
    aux = None if auxiliary is None else mapping.unflatten_aux(auxiliary.result())
    return Solution(*ends, stats, [by_step[step] for step in plan.save_at], aux)


@dataclass
class _Plan:
    """The parts of a call that are not tensors."""

    steps: int
    numbers: list[Any] = field(default_factory=list)  # passed to ``updated`` in every step
    bits: int | None = None
    tol: float | None = None
    check_every: int = 1
    dims: int = 0  # leading dimensions that index samples, which halt one by one
    lag: int = 0  # number of checks by which a decision is delayed, as on a GPU
    save_at: tuple[int, ...] = ()
    first_step: int = 0
    adjoint: str = "reversible"


@torch.compiler.assume_constant_result
def _settled(
    beta: Any, options: Dict[str, Any], exact: bool, exporting: bool, waits: bool
) -> _Plan:
    """The options, checked as ``solve`` does. Options of the backward pass have no effect here."""
    for name in options:
        if name not in TABLE:
            raise TypeError(f"{name}: expected an option of solve, one of {', '.join(TABLE)}")
    given = with_defaults({**options, "beta": 0.5 if beta is None else beta})
    tol, state_bits = given["tol"], given["frac_bits"]
    if exporting:
        _check_exported(given["max_steps"], given["rng"], given["process_group"])
    steps = drawn(given["max_steps"])
    schedule = BetaSchedule(given["beta"], steps, exact=exact)
    convert = ExactSteps.numbers_of if exact else float
    back, adjoint = given["backward_steps"], given["adjoint"]
    if isinstance(tol, StoppingRule):
        raise TypeError(
            f"tol: expected a number or None in torch.export and with tensors without data, got "
            f"{tol!r}; pass a number, or leave tol out there"
        )
    if isinstance(adjoint, Adjoint):
        raise TypeError(
            f"adjoint: expected a name in torch.export and with tensors without data, got "
            f"{adjoint!r}, whose backward pass a program cannot hold; leave adjoint out there"
        )
    return _Plan(
        steps=steps,
        numbers=[] if beta is None else [convert(number) for number in schedule.numbers],
        bits=fractional_bits(state_bits, exact=exact),
        tol=tol or None,
        check_every=given["check_every"],
        dims=int(given["per_sample"]),
        lag=int(waits),
        save_at=steps_to_save(given["save_at"], steps),
        first_step=0 if back is None else max(0, steps - back),
        adjoint=adjoint if adjoint != "auto" else "reversible",
    )


def _check_exported(steps: Any, rng: str, group: Any) -> None:
    """ValueError for options that an exported program cannot support."""
    if callable(steps):
        raise ValueError(
            "max_steps: expected an integer in torch.export, got a function, which a program does "
            "not call; pass the number of steps that the program should take"
        )
    if rng == "shared":
        raise ValueError(
            "rng: expected 'auto' or 'none' in torch.export, got 'shared': a program does not draw "
            "the same numbers twice; pass rng='none', with f in eval mode"
        )
    if group is not None:
        raise ValueError(
            "process_group: expected None in torch.export, got a group; pass tol=None, or let each "
            "rank stop on its own"
        )
