"""The tensors that a solve is a function of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from .problem import Problem

T = TypeVar("T")


@dataclass(eq=False, repr=False)
class Primals(Generic[T]):
    """One item per input of a solve: the tensor, its gradient, or whether that is wanted."""

    z0: Sequence[T]
    y0: Sequence[T]
    beta: Sequence[T]
    arguments: Sequence[T]
    closure: Sequence[T]

    @staticmethod
    def of(problem: Problem, closure: Sequence[Tensor]) -> Primals[Tensor]:
        """The tensors of a problem, and those that f was found to close over."""
        beta = problem.schedule.tensor
        learned = [] if beta is None else [beta]
        return Primals(problem.z0, problem.y0 or [], learned, problem.tensors, closure)

    @staticmethod
    def split(flat: Sequence[T], counts: Sequence[int]) -> Primals[T]:
        """The inverse of ``all``."""
        parts, at = [], 0
        for count in counts:
            parts.append(flat[at : at + count])
            at += count
        return Primals(*parts)

    def counts(self) -> list[int]:
        """The length of each field."""
        return [len(part) for part in self.parts()]

    def all(self) -> list[T]:
        """All items as one list."""
        return [value for part in self.parts() for value in part]

    def tensors(self) -> list[Tensor]:
        """The items that are tensors."""
        return [value for value in self.all() if isinstance(value, Tensor)]

    def parts(self) -> list[Sequence[T]]:
        """The fields, in order."""
        return [self.z0, self.y0, self.beta, self.arguments, self.closure]
