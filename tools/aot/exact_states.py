"""The signatures of the kernels on exact states, for ``signatures.py``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from revdeq_kernels.triton.device.exact_step import (
    GENERAL,
    INTEGER,
    SHIFT,
    ExactlyStepped,
    ExactStep,
)
from revdeq_kernels.triton.kernels import half_step as kernels
from revdeq_kernels.triton.kernels import passes

from .specialisations import (
    LEAVES,
    MIXED,
    MIXED_BYTES,
    MOST_LEAVES,
    NUMELS,
    Size,
    Specialisation,
    Types,
    carried,
    launch,
    pointer,
    step_numbers,
    words,
)

_DIGITS = {SHIFT: (8, 4, 2, 1), INTEGER: (5, 3, 2, 1), GENERAL: (8, 5, 4, 3, 2, 1)}
"""The possible digits per byte of each form of the exact step."""


def signatures() -> Iterator[Specialisation]:
    """Like ``signatures.signatures``."""
    yield from _exact_steps()
    yield from _exact_passes()
    yield from _conversions()


# ---- half steps and passes -------------------------------------------------------------------

Sizes = tuple[Size, Size]
"""The types of numel and of num_bytes, which is a multiple of 32."""

Form = tuple[int, int, str]
"""The form of a step, the digits per byte, and the type of `half`."""

_TYPICAL: Form = (GENERAL.value, 4, "i32")
_ONE_DIGIT: Form = (GENERAL.value, 1, "i64")

_SMALL: Sizes = ("i32:16", "i32:16")
_SIZES: list[tuple[Form, Sizes]] = [
    *((_TYPICAL, (numel, "i32:16")) for numel in NUMELS),
    (_TYPICAL, ("i64", "i64:16")),
    (_ONE_DIGIT, ("i32", "i64:16")),
]
_SIZES_OF_LEAVES: list[tuple[Form, Sizes]] = [
    (_TYPICAL, (MIXED[0], MIXED_BYTES[0])),
    (_ONE_DIGIT, (MIXED[1], MIXED_BYTES[1])),
]

_F_CAST_VJP = (("fp32", None, "fp32"), ("bf16", "bf16", "fp32"), ("fp16", "fp32", "fp16"))


def _forms() -> Iterator[Form]:
    """All possible steps; `half` is at most 2^31 at base 4."""
    for form, digits in _DIGITS.items():
        for packed in digits:
            yield form.value, packed, "i32" if packed >= 4 else "i64"
    yield SHIFT.value, 4, "i64"


def _exact_types(f: str, cast: str | None, sizes: Sizes, half: str) -> Types:
    types: Types = {"stepped": ExactlyStepped("*i32", "*u8", f"*{f}", pointer(cast))}
    types |= dict(zip(("numel", "num_bytes"), sizes, strict=True))
    types |= dict.fromkeys(ExactStep._fields, "i32") | {"scale": "fp32", "unscale": "fp32"}
    return types | {"half": half}


def _exact_steps() -> Iterator[Specialisation]:
    """The inverses take turns with the types, because the passes cover all combinations."""
    for k, (form, packed, half) in enumerate(_forms()):
        for f, cast, _ in _F_CAST_VJP:
            yield _exact_step(form, packed, half, False, f, cast)
        f, cast, _ = _F_CAST_VJP[k % 3]
        yield _exact_step(form, packed, half, True, f, cast)
    yield _exact_step(*_TYPICAL, False, "fp16", "fp16")
    for form, sizes in _SIZES:
        yield _exact_step(*form, False, "bf16", "bf16", sizes)
    for leaves, invert in product((LEAVES, MOST_LEAVES), (False, True)):
        yield _exact_step(*_TYPICAL, invert, "bf16", "bf16", leaves=leaves)
    for (form, sizes), invert in product(_SIZES_OF_LEAVES, (False, True)):
        yield _exact_step(*form, invert, "bf16", "bf16", sizes, leaves=LEAVES)


def _exact_step(
    form: int,
    packed: int,
    half: str,
    invert: bool,
    f: str,
    cast: str | None,
    sizes: Sizes = _SMALL,
    leaves: int = 1,
) -> Specialisation:
    types = _exact_types(f, cast, sizes, half) | {"flag": None if invert else "*i32"}
    label = f"{'invert' if invert else 'update'}_exact form {form} digits {packed} half {half}"
    return launch(
        f"{label} {f} cast {cast} numel {words(sizes[0])} bytes {words(sizes[1])}",
        *(kernels.exact_kernel, types, leaves),
        FORM=form,
        DIGITS_PER_BYTE=packed,
        LANES=kernels.lanes(packed),
    )


def _exact_passes() -> Iterator[Specialisation]:
    for form, packed, half in _forms():
        for f, cast, vjp in _F_CAST_VJP:
            yield _exact_pass(form, packed, half, f, cast, vjp)
        yield _exact_pass(form, packed, half, "bf16", None, "bf16", start=True)
    yield _exact_pass(*_TYPICAL, "fp16", "fp16", "fp16")
    for f, _, vjp in _F_CAST_VJP:
        yield _exact_pass(*_TYPICAL, f, None, vjp, start=True)
    for leaves in (LEAVES, MOST_LEAVES):
        yield _exact_pass(*_TYPICAL, "bf16", "bf16", "bf16", leaves=leaves)
        yield _exact_pass(*_TYPICAL, "bf16", None, "bf16", leaves=leaves, start=True)
    for form, sizes in _SIZES:
        yield _exact_pass(*form, "bf16", "bf16", "bf16", sizes)
    for (form, sizes), start in product(_SIZES_OF_LEAVES, (False, True)):
        cast = None if start else "bf16"
        yield _exact_pass(*form, "bf16", cast, "bf16", sizes, leaves=LEAVES, start=start)


def _exact_pass(
    form: int,
    packed: int,
    half: str,
    f: str,
    cast: str | None,
    vjp: str,
    sizes: Sizes = _SMALL,
    leaves: int = 1,
    start: bool = False,
) -> Specialisation:
    types = _exact_types(f, cast, sizes, half) | carried(f, vjp, start) | {"steps": "i32"}
    types |= step_numbers("fp32", "grad_scale", "seed_beta", "after")
    label = f"pass_exact{' start' if start else ''} form {form} digits {packed} half {half}"
    return launch(
        f"{label} {f} cast {cast} vjp {vjp} numel {words(sizes[0])} bytes {words(sizes[1])}",
        *(passes.exact_pass_kernel, types, leaves),
        FORM=form,
        DIGITS_PER_BYTE=packed,
        LANES=kernels.lanes(packed),
        BLOCK=1024,
    )


# ---- conversions -----------------------------------------------------------------------------


def _conversions() -> Iterator[Specialisation]:
    for f, flag in product(("fp32", "bf16", "fp16"), ("*i32", None)):
        yield _quantize(f, flag)
    yield _quantize("bf16", "*i32", leaves=LEAVES)
    for numel in MIXED:
        yield _quantize("bf16", "*i32", numel, leaves=LEAVES)
        yield _dequantize("bf16", numel, leaves=LEAVES)
    for f in ("fp64", "fp32", "bf16", "fp16"):
        yield _dequantize(f)
    yield _dequantize("bf16", leaves=LEAVES)


def _quantize(f: str, flag: str | None, numel: Size = "i32:16", leaves: int = 1) -> Specialisation:
    types: Types = {"x": f"*{f}", "out": "*i32", "flag": flag, "numel": numel, "scale": "fp32"}
    label = f"quantize {f} numel {words(numel)}" + (" flag" if flag else "")
    return launch(label, kernels.quantize_kernel, types, leaves, BLOCK=1024)


def _dequantize(f: str, numel: Size = "i32:16", leaves: int = 1) -> Specialisation:
    types: Types = {"state": "*i32", "out": f"*{f}", "numel": numel, "unscale": "fp32"}
    return launch(
        f"dequantize {f} numel {words(numel)}", kernels.dequantize_kernel, types, leaves, BLOCK=1024
    )
