"""`update_exact_` and `invert_exact_`: the half step that loses no bit, on int32 fixed point.

The alternative is the paper authors': a float64 state, whose 29 spare bits have to suffice. Its
rows count the exact op's bytes, so that GB/s compare the time of the same half step.
Bytes per element: the int32 state is read and written, f is read, the packed digits are written
(update) or read (invert), `cast` is written where there is one; the range flag is one word in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import revdeq_kernels
from bench.core import providers
from bench.core.case import Bind, Case, Plan, Provider, Tensors, binds, elements_of
from bench.ops.half_step import EAGER

TIE = 1
FRAC_BITS = {torch.float32: 20, torch.bfloat16: 16}

# (beta, f, cast or None, headline): 0.5 (base 2) and 0.8 (base 5) take the pure 32-bit form,
# 0.7312 the general one.
ROWS: tuple[tuple[float, torch.dtype, torch.dtype | None, bool], ...] = (
    (0.5, torch.bfloat16, torch.bfloat16, True),
    (0.8, torch.bfloat16, torch.bfloat16, False),
    (0.7312, torch.bfloat16, torch.bfloat16, True),
    (0.5, torch.float32, None, False),
)


def bytes_moved(elements: int, beta: float, f: torch.dtype, cast: torch.dtype | None) -> int:
    """Bytes one exact half step must move."""
    written_copy = 0 if cast is None else cast.itemsize
    per_element = 2 * torch.int32.itemsize + f.itemsize + written_copy
    return elements * per_element + revdeq_kernels.digit_bytes(elements, beta)


def bind_exact(op: str, beta: float, frac_bits: int) -> Bind:
    """Bind the public function of `op`."""
    written = ("state", "digits", "flag") if op == "update_exact_" else ("state", "digits")
    return binds(getattr(revdeq_kernels, op), *written, "f", beta, frac_bits, TIE)


def make(
    elements: int,
    *,
    op: str,
    beta: float,
    device: torch.device,
    f: torch.dtype,
    cast: torch.dtype | None,
) -> Tensors:
    """Random tensors; for the inverse, state and digits are those that an update left behind."""
    frac_bits = FRAC_BITS[f]
    start = torch.empty(elements, device=device).uniform_(-1, 1)
    digit_bytes = revdeq_kernels.digit_bytes(elements, beta)
    tensors = {
        "state": revdeq_kernels.quantize(start, frac_bits),
        "float64_state": start.double(),
        "f": torch.empty(elements, dtype=f, device=device).uniform_(-1, 1),
        "digits": torch.zeros(digit_bytes, dtype=torch.uint8, device=device),
        "flag": torch.zeros(1, dtype=torch.int32, device=device),
    }
    if op == "invert_exact_":
        bind_exact("update_exact_", beta, frac_bits)(tensors)()
    else:
        tensors["digits"].fill_(0xA5)
    if cast is not None:
        tensors["cast"] = torch.full((elements,), torch.nan, dtype=cast, device=device)
    return tensors


def settle(tensors: Tensors) -> None:
    """Start the float64 inverse at a fixed point, in numbers that it does not round.

    The inverse multiplies a rounding error by 1 / abs(1 - beta), so that some hundred calls take it
    to infinity. At 1, 0 and -1 there is none: 1 - beta is exact for a beta in [1/2, 1].
    """
    tensors["float64_state"].copy_(tensors["f"].sign_())


def case_providers(plan: Plan, op: str, beta: float, frac_bits: int) -> Iterator[Provider]:
    """The float64 state, eager and compiled, then the backends of the project."""
    name = op.replace("_exact", "")
    arguments = ("float64_state", "f", beta)
    own = bind_exact(op, beta, frac_bits)
    return providers.beside_eager(
        plan, EAGER[name], getattr(revdeq_kernels, name), arguments, own=own, suffix=" float64"
    )


def cases(plan: Plan, size_mb: float) -> Iterator[Case]:
    """Both ops on every row of `ROWS`."""
    elements = elements_of(size_mb, torch.int32)
    for op in ("update_exact_", "invert_exact_"):
        for beta, f, cast, headline in ROWS:
            roles = {"state": torch.int32, "f": f, "cast": cast}
            yield Case(
                benchmark="exact_step",
                op=op,
                dtypes={role: dtype for role, dtype in roles.items() if dtype is not None},
                elements=elements,
                bytes=bytes_moved(elements, beta, f, cast),
                make=partial(make, op=op, beta=beta, device=plan.device, f=f, cast=cast),
                providers=tuple(case_providers(plan, op, beta, FRAC_BITS[f])),
                beta=beta,
                settle=settle,
                headline=headline,
            )
