"""The signatures of the kernels on float states, for ``signatures.py``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from revdeq_kernels.dtypes import SEED_OF_GRAD, TRITON
from revdeq_kernels.triton.kernels import half_step as kernels
from revdeq_kernels.triton.kernels import passes

from .specialisations import (
    LEAVES,
    MIXED,
    MOST_LEAVES,
    NUMELS,
    STATE_F,
    Size,
    Specialisation,
    Types,
    carried,
    casts,
    launch,
    real,
    step_numbers,
    step_types,
    words,
)

_ADJOINT = [
    (vjp, TRITON[seed])
    for grad, seeds in SEED_OF_GRAD.items()
    for seed in seeds
    for vjp in dict.fromkeys((TRITON[grad], TRITON[seed]))
]
"""The dtypes of vjp and of seed (the dtype of f)."""


def signatures() -> Iterator[Specialisation]:
    """Like ``signatures.signatures``."""
    yield from _half_steps()
    yield from _channel_steps()
    yield from _adjoints()
    yield from _passes()
    yield from _residuals()


# ---- half steps ------------------------------------------------------------------------------


def _half_steps() -> Iterator[Specialisation]:
    for (state, f), invert in product(STATE_F, (False, True)):
        for cast in casts(f):
            yield _half_step(state, f, cast, invert)
    for numel in NUMELS:
        yield _half_step("fp32", "bf16", "bf16", invert=True, numel=numel)
    for invert in (False, True):
        yield _half_step("fp32", "bf16", "bf16", invert, leaves=LEAVES)
    for numel in MIXED:
        yield _half_step("fp32", "bf16", "bf16", invert=True, numel=numel, leaves=LEAVES)


def _half_step(
    state: str, f: str, cast: str | None, invert: bool, numel: Size = "i32:16", leaves: int = 1
) -> Specialisation:
    types = step_types(state, f, cast, numel) | step_numbers(state, "keep", "beta")
    label = f"{'invert' if invert else 'update'} {state} {f} cast {cast} numel {words(numel)}"
    kernel = kernels.half_step_kernel
    return launch(label, kernel, types, leaves, INVERT=invert, BLOCK=1024)


_CHANNELS = {
    "one": ("1", "1", "i32:16"),
    "inner": ("i32:16", "i32:16", "1"),
    "odd": ("i32", "i32", "i32"),
    "last": ("1", "i32:16", "1"),
}
"""inner, channels and stride: one beta; whole planes; unaligned sizes; channels last."""


def _channel_steps() -> Iterator[Specialisation]:
    for (state, f), invert in product(STATE_F, (False, True)):
        yield _channel_step(state, f, f, invert, "inner")
    for layout in _CHANNELS:
        yield _channel_step("fp32", "bf16", None, True, layout)


def _channel_step(
    state: str, f: str, cast: str | None, invert: bool, layout: str
) -> Specialisation:
    types = step_types(state, f, cast, "i32:16")
    types |= {"beta": "*fp64" if state == "fp64" else "*fp32"}
    types |= dict(zip(("inner", "channels", "stride"), _CHANNELS[layout], strict=True))
    label = f"{'invert' if invert else 'update'} {state} {f} cast {cast} channels {layout}"
    kernel = kernels.channel_step_kernel
    return launch(label, kernel, types, None, INVERT=invert, BLOCK=1024)


# ---- the adjoint and the passes --------------------------------------------------------------


def _adjoints() -> Iterator[Specialisation]:
    for vjp, seed in _ADJOINT:
        yield _adjoint(vjp, seed)
    yield _adjoint("fp64", "fp64", scale="i32")
    yield _adjoint("bf16", "bf16", leaves=LEAVES)
    for numel in MIXED:
        yield _adjoint("bf16", "bf16", numel, leaves=LEAVES)


def _adjoint(
    vjp: str, seed: str, numel: Size = "i32:16", leaves: int = 1, **numbers: str | None
) -> Specialisation:
    types = carried(seed, vjp, start=False) | {"numel": numel}
    types |= step_numbers(real(seed), "scale", "beta", "after") | numbers
    label = f"adjoint {vjp} {seed} numel {words(numel)}" + (" scale 0" if numbers else "")
    return launch(label, kernels.adjoint_kernel, types, leaves, BLOCK=1024)


def _passes() -> Iterator[Specialisation]:
    for state, f in STATE_F:
        for vjp in dict.fromkeys((f, real(f))):
            yield _pass(state, f, f, vjp)
            yield _pass(state, f, None, vjp, start=True)
    for state, f in (("fp64", "fp64"), ("fp32", "bf16"), ("fp16", "fp16")):
        for cast in (None, "fp32"):
            yield _pass(state, f, cast, f)
    yield _pass("fp32", "bf16", "bf16", "bf16", numel="i32")
    yield _pass("fp32", "bf16", "bf16", "bf16", leaves=LEAVES)
    yield _pass("fp32", "bf16", None, "bf16", start=True, leaves=LEAVES)
    for numel in MIXED:
        yield _pass("fp32", "bf16", "bf16", "bf16", numel, leaves=LEAVES)
        yield _pass("fp32", "bf16", None, "bf16", numel, start=True, leaves=LEAVES)


def _pass(
    state: str,
    f: str,
    cast: str | None,
    vjp: str,
    numel: Size = "i32:16",
    leaves: int = 1,
    start: bool = False,
) -> Specialisation:
    types = step_types(state, f, cast, numel) | carried(f, vjp, start) | {"steps": "i32"}
    types |= step_numbers(state, "keep", "beta") | step_numbers(
        real(f), "scale", "seed_beta", "after"
    )
    if start and f == "fp64":
        types["seed_beta"] = "i32"  # the bits of 0.0
    label = (
        f"pass{' start' if start else ''} {state} {f} cast {cast} vjp {vjp} numel {words(numel)}"
    )
    return launch(label, passes.pass_kernel, types, leaves, BLOCK=1024)


# ---- the residual ----------------------------------------------------------------------------


def _residuals() -> Iterator[Specialisation]:
    for z, f in STATE_F:
        yield _residual(z, f)
    for numel in NUMELS:
        yield _residual("fp32", "bf16", numel)
        yield _norms(numel)
    for leaves in (LEAVES, MOST_LEAVES):
        yield _residual("fp32", "bf16", leaves=leaves)
        yield _norms(leaves=leaves)
    for numel in MIXED:
        yield _residual("fp32", "bf16", numel, leaves=LEAVES)
        yield _norms(numel, leaves=LEAVES)


def _residual(z: str, f: str, numel: Size = "i32:16", leaves: int = 1) -> Specialisation:
    types: Types = {"z": f"*{z}", "f": f"*{f}", "sums": "*fp64", "numel": numel}
    kernel = kernels.residual_kernel
    return launch(
        f"residual {z} {f} numel {words(numel)}", kernel, types, leaves, COLUMNS=256, ROWS=16
    )


def _norms(numel: Size = "i32:16", leaves: int = 1) -> Specialisation:
    types: Types = {"sums": "*fp64", "result": "*fp64", "numel": numel}
    kernel = kernels.norms_kernel
    return launch(f"norms numel {words(numel)}", kernel, types, leaves, COLUMNS=256, ROWS=16)
