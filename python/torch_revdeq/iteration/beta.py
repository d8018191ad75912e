"""The relaxation factor of every step, as given by the caller and as applied by the ops.

With per-sample halting also of every sample: 0 once it has halted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import TypeAlias

import torch
from torch import Tensor

from revdeq_kernels import effective_beta
from revdeq_kernels.exact_numbers import BetaError, check_beta

from .halting import Halting

Beta: TypeAlias = float | Sequence[float] | Callable[[int], float] | Tensor
"""One number for all steps, one per step, a function of the step, or a tensor (learnable)."""


class BetaSchedule:
    """beta_n for n = 0 .. max_steps - 1.

    `tensor` is the caller's tensor, if beta is one; an exact state reads its value once, a float
    state passes it to the ops. `applied(n)` is what the ops apply: for an exact state
    ``effective_beta`` of the number. It applies to the samples in `moving(n)`.
    """

    def __init__(
        self, beta: Beta, max_steps: int, *, exact: bool, halting: Halting | None = None
    ) -> None:
        """Resolve beta for every step; ValueError or TypeError for an invalid one."""
        self.max_steps = max_steps
        self.exact, self.halting = exact, halting
        self.tensor = beta if isinstance(beta, Tensor) else None
        self.numbers: list[float] = []
        self.numbers = self._numbers(beta, max_steps)
        convert = effective_beta if exact else float
        if type(beta) is float:  # the common case: one for all steps
            self._applied = [self._convert(convert, self.numbers[0], 0)] * max_steps
            return
        first = {number: n for n, number in reversed(list(enumerate(self.numbers)))}
        applied = {number: self._convert(convert, number, n) for number, n in first.items()}
        self._applied = [applied[number] for number in self.numbers]

    def beta(self, n: int) -> float | Tensor:
        """What the ops get in step n."""
        return self.numbers[n] if self.numbers else self.tensor  # type: ignore[return-value]

    def applied(self, n: int) -> float | Tensor:
        """The factor that the ops and the adjoint apply in step n."""
        return self._applied[n] if self.numbers else self.tensor  # type: ignore[return-value]

    def moving(self, n: int) -> Tensor | None:
        """Which samples move in step n; None if the host knows that all do."""
        return None if self.halting is None else self.halting.moving(n)

    def all_move(self, n: int) -> bool:
        """Whether all samples move in step n. Call it after the forward pass."""
        return self.halting is None or self.halting.all_move(n)

    def smallest_factor(self, steps: int) -> float:
        """The product of abs(1 - beta) over the steps: the remaining share of the initial state."""
        if not self.numbers:
            assert self.tensor is not None
            return float((1 - self.tensor.detach()).abs().min()) ** steps
        return math.prod(abs(1 - float(b)) for b in self._applied[:steps])

    def again(self, steps: int, tensor: Tensor | None = None) -> BetaSchedule:
        """The schedule of the first steps, with `tensor` instead of the caller's."""
        schedule = copy.copy(self)
        schedule.max_steps = steps
        schedule.tensor = tensor
        return schedule

    def _numbers(self, beta: Beta, max_steps: int) -> list[float]:
        if isinstance(beta, Tensor):
            return self._of_tensor(beta, max_steps)
        if callable(beta):
            numbers = [beta(n) for n in range(max_steps)]
        elif isinstance(beta, (int, float)):
            return [float(beta)] * max_steps
        else:
            numbers = list(beta)
            if len(numbers) < max_steps:
                raise ValueError(
                    f"beta: expected one value for each of max_steps={max_steps} steps, got "
                    f"{len(numbers)}; make the sequence longer or max_steps smaller"
                )
        for number in numbers:
            if not isinstance(number, Real):
                raise TypeError(
                    f"beta: expected numbers, got {type(number).__name__}; pass a learnable beta "
                    "as one tensor for all steps"
                )
        return [float(number) for number in numbers[:max_steps]]

    def _of_tensor(self, beta: Tensor, max_steps: int) -> list[float]:
        """One number for an exact state; none for a float state, which computes with the tensor."""
        if self.exact:
            if beta.numel() != 1:
                raise ValueError(
                    f"beta: expected one element with state='exact', got {tuple(beta.shape)}; "
                    "choose state=torch.float32 or torch.float64 for a beta per channel"
                )
            return [float(beta.detach())] * max_steps
        if beta.device.type == "cpu":
            for value in beta.detach().flatten().tolist():
                self._convert(float, value, 0)
        return []

    def _convert(self, convert: Callable[[float], float], number: float, n: int) -> float:
        try:
            check_beta(number)
            return convert(number)
        except BetaError as error:
            where = f" in step {n}" if len(set(self.numbers)) > 1 else ""
            raise ValueError(
                f"beta: expected {error.expected}{where}, got {error.got}; {error.remedy}"
            ) from None


def as_beta(beta: float | Tensor, state: Tensor) -> float | Tensor:
    """beta in the form that the ops need for this state: a tensor in their compute dtype."""
    if not isinstance(beta, Tensor):
        return beta
    return beta.to(torch.float64 if state.dtype == torch.float64 else torch.float32)
