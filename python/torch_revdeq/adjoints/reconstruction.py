"""Check that the backward pass recovered the initial state; the error if it did not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime.deferred import (
    TOLERANCE,
    PendingCheck,
    ReconstructionError,
    deferred,
    report_check,
    spoil,
)
from ..runtime.magnitude import magnitude
from ..runtime.scopes import CHECK, scope
from ..solution import Stats
from ..state.exact import ExactPair
from ..state.pair import Leaves, Pair
from .problem import Problem


class Check:
    """The check of one backward pass, created before it, when the pair holds the final state."""

    @scope(CHECK)
    def __init__(self, problem: Problem, pair: Pair) -> None:
        """Measure the final state: the error of a float state is relative to it."""
        self.problem = problem
        self.enabled = problem.check is not False
        measured = self.enabled and not problem.exact
        self.end = _largest([*pair.y, *pair.z]) if measured else None

    @scope(CHECK)
    def after(
        self,
        pair: Pair,
        z0: Leaves,
        y0: Leaves,
        steps: int,
        stats: Stats,
        poisoned: Sequence[Tensor] = (),
    ) -> PendingCheck | None:
        """Compare the pair with the initial state, in the pair's own format, after `steps` steps.

        ReconstructionError, now or later, if it differs. If the error is deferred, `poisoned`
        become NaN when the check fails, and the pending check is returned. `poisoned` also become
        NaN if an exact state left its range, for which an error is pending already.
        """
        if isinstance(pair, ExactPair) and deferred(pair.flag.device):
            spoil(poisoned, pair.flag)
        if not self.enabled:
            return None
        if not any(leaf.numel() for leaf in z0):
            stats._reconstruction_error = 0.0
            return None
        exact = isinstance(pair, ExactPair)
        if exact and not deferred(pair.z[0].device) and _equal(pair, z0, y0):
            stats._reconstruction_error = 0.0
            return None
        scale = _largest([*z0, *y0])
        if exact:
            error, tolerance = _distance([*pair.z, *pair.y], [*z0, *y0], scale.clamp_min(1.0)), 0.0
            failed = _differs(pair, z0, y0)
        else:
            assert self.end is not None
            tolerance = float_tolerance(self.problem.check, pair.layout.state[0])
            error = _distance([*pair.z, *pair.y], [*z0, *y0], torch.maximum(scale, self.end))
            failed = ~(error <= tolerance)  # NaN fails
        stats._reconstruction_error = error
        pending = report_check(failed, lambda: self._error(error, tolerance, steps), poisoned)
        if pending is not None:
            stats._pending.append(pending)
        return pending

    def _error(self, error: Tensor, tolerance: float, steps: int) -> ReconstructionError:
        got = f"relative error {float(error):.3g}"
        got += "" if self.problem.exact else f", tolerance {tolerance:.3g}"
        causes = [] if self.problem.exact else self._cliff(steps, tolerance)
        if self.end is not None and not math.isfinite(self.end):
            causes = ["the state became NaN or infinite: check z, z0 and what f reads"]
        if self.problem.evaluation.random.active is False:
            causes.append(
                "f draws random numbers from a source other than torch's default generators (its "
                "own Generator, numpy, random)"
            )
        if (writes := self.problem.evaluation.writes) and (changed := writes.changed()):
            names = ", ".join(change.name for change in changed)
            causes.append(f"f reads what it writes, or what was written since: {names}")
        causes += [
            "a parameter, buffer or argument was changed since the forward pass, through .data or "
            "while it was frozen, or f closes over another tensor now",
            "f depends on a counter or other internal state, or on the number of threads "
            "(torch.set_num_threads) if that changed, or is not deterministic (see "
            "torch.use_deterministic_algorithms)",
        ]
        return ReconstructionError(
            f"solve: reversing the iteration did not recover the initial state ({got}), so the "
            f"gradient would be wrong. Probable causes: {'; '.join(causes)}. adjoint='backprop' "
            "and 'checkpoint' do not reverse the iteration"
        )

    def _cliff(self, steps: int, tolerance: float) -> list[str]:
        """The loss of precision as a cause, where it explains the error."""
        left = self.problem.schedule.smallest_factor(steps)
        state = self.problem.format.stored
        lost = torch.finfo(state).eps / max(left, math.ulp(0.0))
        name = str(state).removeprefix("torch.")
        share = "enough to explain it" if lost > tolerance else "and f amplifies them further"
        if state == torch.float64 and torch.float64 not in (self.problem.mapping.dtypes or ()):
            share += ", to float32 precision where it reads the state rounded"
        return [
            f"the precision limit of a {name} state: reversing {steps} steps multiplies its "
            f"rounding errors by {1 / max(left, 1e-300):.2g} through 1/|1-beta| alone, {share} "
            "(use state='exact', fewer steps, or a beta closer to 0)"
        ]


def _equal(pair: Pair, z0: Sequence[Tensor], y0: Sequence[Tensor]) -> bool:
    return all(map(torch.equal, pair.z, z0)) and all(map(torch.equal, pair.y, y0))


def _differs(pair: Pair, z0: Sequence[Tensor], y0: Sequence[Tensor]) -> Tensor:
    """Whether any element differs, on the device."""
    rows = zip([*pair.z, *pair.y], [*z0, *y0], strict=True)
    return torch.stack([(end != start).any() for end, start in rows]).any()


def is_far(back: Leaves, start: Leaves, end: Leaves, tolerance: float) -> Tensor:
    """Whether a reconstructed float state exceeds the tolerance, where nothing can be raised."""
    scale = torch.maximum(_largest(start), _largest(end))
    return ~(_distance(back, start, scale) <= tolerance)


def float_tolerance(check: bool | float, state: torch.dtype) -> float:
    """The relative error allowed for a reconstructed float state."""
    return TOLERANCE[state] if check is True else float(check)


def _distance(back: Leaves, start: Leaves, scale: Tensor) -> Tensor:
    """The largest difference of an element as a share of `scale`, in float64."""
    error = _largest([end - first for end, first in zip(back, start, strict=True)])
    return torch.where(error == 0, error, error / scale)


def _largest(leaves: Sequence[Tensor]) -> Tensor:
    """The largest absolute value, in float64; NaN if there is one, 0 without elements."""
    norms = [_norm(leaf) for leaf in leaves if leaf.numel()]
    if not norms:
        return torch.zeros((), dtype=torch.float64, device=leaves[0].device)
    return torch.stack(norms).max()


def _norm(leaf: Tensor) -> Tensor:
    if leaf.is_floating_point():
        return magnitude(leaf).double()
    return torch.maximum(leaf.amax().double(), -leaf.amin().double())
