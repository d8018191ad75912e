"""Small random arguments of every op: each combination of dtypes, several values of beta."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import checks
from .fixed_point import digit_bytes

NUMEL = 1003  # whole blocks, a partial one, and a tail that no vector covers
BETAS = (0.5, 0.8, 0.7312, 1.3)  # digits by shift, by integer, in general; 1 - beta < 0
FRAC_BITS = 16

Sample = tuple[list[Any], dict[str, Tensor]]
"""Arguments by position, and by keyword; the tensors are on the CPU."""


def samples(op: str) -> Iterator[Sample]:
    """The arguments with which `op` is compared with the reference, the same in every process."""
    makers = {
        "update_": _half_step,
        "invert_": _half_step,
        "adjoint_": _adjoint,
        "update_exact_": _update_exact,
        "invert_exact_": _invert_exact,
        "quantize": _quantize,
        "dequantize": _dequantize,
    }
    return makers[op](_Random())


class _Random:
    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, dtype: torch.dtype) -> Tensor:
        return torch.randn(NUMEL, generator=self.generator).to(dtype)

    def grid(self) -> Tensor:
        """An exact state, some of it far from 0."""
        return torch.randint(-(2**21), 2**21, (NUMEL,), generator=self.generator).to(torch.int32)

    def digits(self, beta: float) -> Tensor:
        size = (digit_bytes(NUMEL, beta),)
        return torch.randint(0, 256, size, generator=self.generator).to(torch.uint8)


def _half_step(random: _Random) -> Iterator[Sample]:
    for state, f in ((state, f) for state, fs in checks.F_DTYPES.items() for f in fs):
        for beta in BETAS:
            yield [random.normal(state), random.normal(f), beta], {"cast": random.normal(f)}


def _adjoint(random: _Random) -> Iterator[Sample]:
    for grad, seed in ((grad, s) for grad, seeds in checks.ADJOINT_DTYPES.items() for s in seeds):
        for vjp in {seed, grad}:
            args = [random.normal(grad), random.normal(vjp), 0.2688, 0.7312, random.normal(seed)]
            yield args, {}


def _update_exact(random: _Random) -> Iterator[Sample]:
    for f in checks.EXACT_F_DTYPES:
        for n, beta in enumerate(BETAS):
            flag = torch.zeros(1, dtype=torch.int32)
            args = [random.grid(), random.digits(beta), flag, random.normal(f)]
            yield [*args, beta, FRAC_BITS, n % 2], {"cast": random.normal(f)}


def _invert_exact(random: _Random) -> Iterator[Sample]:
    for f in checks.EXACT_F_DTYPES:
        for n, beta in enumerate(BETAS):
            args = [random.grid(), random.digits(beta), random.normal(f)]
            yield [*args, beta, FRAC_BITS, n % 2], {"cast": random.normal(f)}


def _quantize(random: _Random) -> Iterator[Sample]:
    for x in checks.EXACT_F_DTYPES:
        yield [random.normal(x), FRAC_BITS], {"flag": torch.zeros(1, dtype=torch.int32)}


def _dequantize(random: _Random) -> Iterator[Sample]:
    for dtype in checks.F_DTYPES:
        yield [random.grid(), FRAC_BITS, dtype], {}
