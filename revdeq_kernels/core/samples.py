"""Small random arguments of every op: each combination of dtypes, several values of beta."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..exact_numbers import digit_bytes
from .checks import ADJOINT_DTYPES, EXACT_F_DTYPES, F32, F64, F_DTYPES
from .lists import SHARED

NUMEL = 1003  # whole blocks, a partial one, and a tail that no vector covers
LEAVES = (NUMEL, 1, 0, 4096 + 33)
"""The sizes of the leaves in samples of lists."""

BETAS = (0.5, 0.8, 0.7312, 1.3)  # digits by shift, by integer, in general; 1 - beta < 0
FRAC_BITS = 16

Named = dict[str, Any]
Sample = tuple[list[Any], dict[str, Any]]
"""Arguments by position, and by keyword; the tensors are on the CPU."""


def samples(op: str) -> Iterator[Sample]:
    """The arguments with which `op` is compared with the reference, the same in every process.

    `op` is a name of ``registration.OPS``, overloads among them.
    """
    name, _, overload = op.partition(".")
    if overload == "channels":
        named = _channel_step(_Random(NUMEL))
    elif overload == "list":
        named = _lists([_MAKERS[name](_Random(numel)) for numel in LEAVES])
    else:
        named = _MAKERS[name](_Random(NUMEL))
    keyword = "flag" if name == "quantize" else "cast"
    for arguments in named:
        keywords = {keyword: arguments.pop(keyword)} if keyword in arguments else {}
        yield list(arguments.values()), keywords


def _lists(leaves: list[Iterator[Named]]) -> Iterator[Named]:
    """The samples of several sizes, leaf by leaf; numbers and flags are one for all."""
    for together in zip(*leaves, strict=True):
        lists = {name: [leaf[name] for leaf in together] for name in together[0]}
        if "x" in lists:  # quantize, which is given its results then
            lists["out"] = [torch.zeros_like(x, dtype=torch.int32) for x in lists["x"]]
        yield {name: v[0] if name in SHARED else v for name, v in lists.items()}


class _Random:
    def __init__(self, numel: int) -> None:
        self.numel = numel
        self.generator = torch.Generator().manual_seed(numel)

    def normal(self, dtype: torch.dtype) -> Tensor:
        return torch.randn(self.numel, generator=self.generator).to(dtype)

    def grid(self) -> Tensor:
        """An exact state, some of it far from 0."""
        values = torch.randint(-(2**21), 2**21, (self.numel,), generator=self.generator)
        return values.to(torch.int32)

    def digits(self, beta: float) -> Tensor:
        size = (digit_bytes(self.numel, beta),)
        return torch.randint(0, 256, size, generator=self.generator).to(torch.uint8)


# ---- half steps ------------------------------------------------------------------------------


def _half_step(random: _Random) -> Iterator[Named]:
    for state, f in _float_pairs():
        for beta in BETAS:
            yield {"state": random.normal(state), "f": random.normal(f), "beta": beta} | {
                "cast": random.normal(f)
            }


def _channel_step(random: _Random) -> Iterator[Named]:
    """One beta for all, one for every row, one for every place in a row."""
    rows, columns = 17, 59
    for state, f in _float_pairs():
        for shape in ((1,), (rows, 1), (columns,)):
            beta = torch.rand(shape, generator=random.generator, dtype=torch.float64) * 0.9
            arguments = {"state": random.normal(state), "f": random.normal(f)}
            arguments |= {"beta": beta.to(F64 if state == F64 else F32), "cast": random.normal(f)}
            yield {
                name: t if name == "beta" else t.view(rows, columns)
                for name, t in arguments.items()
            }


def _float_pairs() -> list[tuple[torch.dtype, torch.dtype]]:
    return [(state, f) for state, fs in F_DTYPES.items() for f in fs]


def _exact(random: _Random, lead: str) -> Iterator[Named]:
    for f in EXACT_F_DTYPES:
        for n, beta in enumerate(BETAS):
            arguments = {lead: random.grid(), "digits": random.digits(beta)}
            arguments |= {"f": random.normal(f), "beta": beta, "frac_bits": FRAC_BITS, "tie": n % 2}
            yield arguments | {"cast": random.normal(f)}


def _update_exact(random: _Random) -> Iterator[Named]:
    for arguments in _exact(random, "state"):
        flag = torch.zeros(1, dtype=torch.int32)
        state, digits = arguments.pop("state"), arguments.pop("digits")
        yield {"state": state, "digits": digits, "flag": flag} | arguments


# ---- the adjoint and the passes --------------------------------------------------------------


def _adjoint(random: _Random) -> Iterator[Named]:
    for grad, seed in ((grad, s) for grad, seeds in ADJOINT_DTYPES.items() for s in seeds):
        for vjp in dict.fromkeys((seed, grad)):
            arguments = {"grad": random.normal(grad), "vjp": random.normal(vjp)}
            yield arguments | {"scale": 0.2688, "beta": 0.7312, "seed": random.normal(seed)}


def _pass(random: _Random, carry: str, exact: bool) -> Iterator[Named]:
    lead = "z" if carry == "y" else "y"
    half_steps = _exact(random, lead) if exact else _half_step(random)
    for arguments in half_steps:
        state = arguments.pop(lead if exact else "state")
        half_step = {lead: state, **arguments}
        cast, f = half_step.pop("cast"), half_step["f"].dtype
        for wide in (False, True):
            grad = F64 if f == F64 else F32
            vjp = random.normal(grad if wide else f)
            seed = {"seed": random.normal(f)}
            step = {n: v.clone() if isinstance(v, Tensor) else v for n, v in half_step.items()}
            if carry == "y":
                yield {**step, "grad_y": random.normal(grad), "vjp": vjp, **seed, "cast": cast}
            elif carry == "z":
                step |= {"grad_z": random.normal(grad), "vjp": vjp, "next_beta": 0.31}
                yield {**step, **seed, "cast": cast}
            else:
                grads = {"grad_z": random.normal(grad), "grad_y": random.normal(grad)}
                yield {**step, **grads, "vjp": vjp}


# ---- conversions and the residual ------------------------------------------------------------


def _quantize(random: _Random) -> Iterator[Named]:
    for x in EXACT_F_DTYPES:
        flag = torch.zeros(1, dtype=torch.int32)
        yield {"x": random.normal(x), "frac_bits": FRAC_BITS, "flag": flag}


def _dequantize(random: _Random) -> Iterator[Named]:
    for dtype in F_DTYPES:
        yield {"state": random.grid(), "frac_bits": FRAC_BITS, "dtype": dtype}


def _residual(random: _Random) -> Iterator[Named]:
    for z, f in _float_pairs():
        yield {"z": random.normal(z), "f": random.normal(f)}


_MAKERS = {
    "update_": _half_step,
    "invert_": _half_step,
    "adjoint_": _adjoint,
    "update_exact_": _update_exact,
    "invert_exact_": lambda random: _exact(random, "state"),
    "invert_z_adjoint_y_": lambda random: _pass(random, "y", exact=False),
    "invert_y_adjoint_z_": lambda random: _pass(random, "z", exact=False),
    "invert_y_adjoint_z0_": lambda random: _pass(random, "z0", exact=False),
    "invert_z_adjoint_y_exact_": lambda random: _pass(random, "y", exact=True),
    "invert_y_adjoint_z_exact_": lambda random: _pass(random, "z", exact=True),
    "invert_y_adjoint_z0_exact_": lambda random: _pass(random, "z0", exact=True),
    "quantize": _quantize,
    "dequantize": _dequantize,
    "residual": _residual,
}
