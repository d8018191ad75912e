"""The signatures with which the Triton kernels are launched, for compiling them without a GPU.

Imports triton only, not torch, so that a compiler of another version can be tried by itself. With
one leaf, every kernel is here with every combination of types, passes with a choice that takes each
path of the code; with more leaves, and sizes that are not multiples of 16, one combination each.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from . import cell_aot, kernels, passes
from .half_step import GENERAL, INTEGER, SHIFT

Specialisation = tuple[str, Any, dict[str, Any], dict[str, Any]]
Types = dict[str, str | None]

_STATE_F = [
    *product(("fp64",), ("fp64", "fp32", "bf16", "fp16")),
    *product(("fp32",), ("fp32", "bf16", "fp16")),
    *(("bf16", "bf16"), ("fp16", "fp16")),
]
_ADJOINT = [("fp64", "fp64"), ("fp32", "fp32")]
_ADJOINT += product(("fp32", "bf16"), ("bf16",))
_ADJOINT += product(("fp32", "fp16"), ("fp16",))
"""The dtypes of vjp and of seed, which is that of f."""

_DIGITS = {SHIFT: (8, 4, 2, 1), INTEGER: (5, 3, 2, 1), GENERAL: (8, 5, 4, 3, 2, 1)}
"""The digits per byte that each form of the exact step has."""

_TUPLES = {"state", "f", "cast", "digits", "numel", "num_bytes", "grad", "other", "vjp", "seed"}
_TUPLES |= {"x", "out", "z"}
"""The parameters with one element for each leaf."""

_LEAVES = 3
_MOST_LEAVES = 16
_NUMELS = ("i32", "i64", "1")
"""Beside "i32:16", which nearly all tensors have."""


def signatures() -> Iterator[Specialisation]:
    """Yields (label, kernel, signature, keywords) for each specialisation.

    A signature maps parameters to types as triton.compiler.ASTSource takes them, or to a tuple of
    them; "i32:16" is an i32 that is a multiple of 16, and "1" is the integer 1. Keywords are the
    kernel's constants and the compiler's options.
    """
    yield from _half_steps()
    yield from _channel_steps()
    yield from _adjoints()
    yield from _passes()
    yield from _exact_steps()
    yield from _exact_passes()
    yield from _conversions()
    yield from _residuals()
    yield from cell_aot.signatures()


ARCHITECTURES = cell_aot.architectures()
"""The signatures that are launched on some NVIDIA GPUs only, by label, and on which."""


def _launch(
    label: str, kernel: Any, types: Types, leaves: int | None = 1, **constants: Any
) -> Specialisation:
    """With tuples for so many leaves; a type that is None stands for an argument that is."""
    signature: dict[str, Any] = {}
    for name, kind in types.items():
        if kind is None:
            constants[name] = None
        else:
            signature[name] = (kind,) * leaves if leaves and name in _TUPLES else kind
    label += f" {leaves} leaves" if leaves not in (None, 1) else ""
    return label, kernel, signature, constants | kernels.OPTIONS


def _pointer(element: str | None) -> str | None:
    return element and f"*{element}"


def _casts(f: str) -> list[str | None]:
    return list(dict.fromkeys((None, f, "fp32")))


# ---- float states ----------------------------------------------------------------------------


def _step_types(state: str, f: str, cast: str | None, numel: str) -> Types:
    types: Types = {"state": _pointer(state), "f": _pointer(f), "cast": _pointer(cast)}
    return types | {"numel": numel}


def _numbers(real: str, *names: str) -> Types:
    """Numbers of a step, doubles as their bits."""
    return dict.fromkeys(names, "i64" if real == "fp64" else "fp32")


def _half_steps() -> Iterator[Specialisation]:
    for (state, f), invert in product(_STATE_F, (False, True)):
        for cast in _casts(f):
            yield _half_step(state, f, cast, invert)
    for numel in _NUMELS:
        yield _half_step("fp32", "bf16", "bf16", invert=True, numel=numel)
    for invert in (False, True):
        yield _half_step("fp32", "bf16", "bf16", invert, leaves=_LEAVES)


def _half_step(
    state: str, f: str, cast: str | None, invert: bool, numel: str = "i32:16", leaves: int = 1
) -> Specialisation:
    types = _step_types(state, f, cast, numel) | _numbers(state, "keep", "beta")
    label = f"{'invert' if invert else 'update'} {state} {f} cast {cast} numel {numel}"
    kernel = kernels.half_step_kernel
    return _launch(label, kernel, types, leaves, INVERT=invert, BLOCK=1024)


_CHANNELS = {
    "one": ("1", "1", "i32:16"),
    "inner": ("i32:16", "i32:16", "1"),
    "odd": ("i32", "i32", "i32"),
    "last": ("1", "i32:16", "1"),
}
"""inner, channels and stride: one beta; whole planes; what has no alignment; channels last."""


def _channel_steps() -> Iterator[Specialisation]:
    for (state, f), invert in product(_STATE_F, (False, True)):
        yield _channel_step(state, f, f, invert, "inner")
    for layout in _CHANNELS:
        yield _channel_step("fp32", "bf16", None, True, layout)


def _channel_step(
    state: str, f: str, cast: str | None, invert: bool, layout: str
) -> Specialisation:
    types = _step_types(state, f, cast, "i32:16")
    types |= {"beta": "*fp64" if state == "fp64" else "*fp32"}
    types |= dict(zip(("inner", "channels", "stride"), _CHANNELS[layout], strict=True))
    label = f"{'invert' if invert else 'update'} {state} {f} cast {cast} channels {layout}"
    kernel = kernels.channel_step_kernel
    return _launch(label, kernel, types, None, INVERT=invert, BLOCK=1024)


# ---- the adjoint and the passes --------------------------------------------------------------


def _real(f: str) -> str:
    """The dtype of the gradients."""
    return "fp64" if f == "fp64" else "fp32"


def _carried(f: str, vjp: str, start: bool) -> Types:
    """The tensors of an adjoint; the one of z_0 adds the gradient of y_0 and leaves no seed."""
    grad = f"*{_real(f)}"
    other, seed = (grad, None) if start else (None, f"*{f}")
    return {"grad": grad, "other": other, "vjp": f"*{vjp}", "seed": seed}


def _adjoints() -> Iterator[Specialisation]:
    for vjp, seed in _ADJOINT:
        yield _adjoint(vjp, seed)
    yield _adjoint("fp64", "fp64", scale="i32")
    yield _adjoint("bf16", "bf16", leaves=_LEAVES)


def _adjoint(vjp: str, seed: str, leaves: int = 1, **numbers: str | None) -> Specialisation:
    types = _carried(seed, vjp, start=False) | {"numel": "i32:16"}
    types |= _numbers(_real(seed), "scale", "beta", "after") | numbers
    label = f"adjoint {vjp} {seed}" + (" scale 0" if numbers else "")
    return _launch(label, kernels.adjoint_kernel, types, leaves, BLOCK=1024)


def _passes() -> Iterator[Specialisation]:
    for state, f in _STATE_F:
        for vjp in dict.fromkeys((f, _real(f))):
            yield _pass(state, f, f, vjp)
            yield _pass(state, f, None, vjp, start=True)
    for state, f in (("fp64", "fp64"), ("fp32", "bf16"), ("fp16", "fp16")):
        for cast in (None, "fp32"):
            yield _pass(state, f, cast, f)
    yield _pass("fp32", "bf16", "bf16", "bf16", numel="i32")
    yield _pass("fp32", "bf16", "bf16", "bf16", leaves=_LEAVES)
    yield _pass("fp32", "bf16", None, "bf16", start=True, leaves=_LEAVES)


def _pass(
    state: str,
    f: str,
    cast: str | None,
    vjp: str,
    numel: str = "i32:16",
    leaves: int = 1,
    start: bool = False,
) -> Specialisation:
    types = _step_types(state, f, cast, numel) | _carried(f, vjp, start) | {"steps": "i32"}
    types |= _numbers(state, "keep", "beta") | _numbers(_real(f), "scale", "seed_beta", "after")
    if start and f == "fp64":
        types["seed_beta"] = "i32"  # the bits of 0.0
    label = f"pass{' start' if start else ''} {state} {f} cast {cast} vjp {vjp} numel {numel}"
    return _launch(label, passes.pass_kernel, types, leaves, BLOCK=1024)


# ---- exact states ----------------------------------------------------------------------------

_TYPICAL = (GENERAL.value, 4, "i32")
_F_CAST_VJP = (("fp32", None, "fp32"), ("bf16", "bf16", "fp32"), ("fp16", "fp32", "fp16"))


def _forms() -> Iterator[tuple[int, int, str]]:
    """The form, the digits per byte, and the type of `half`, which has at most 2^31 at base 4."""
    for form, digits in _DIGITS.items():
        for packed in digits:
            yield form.value, packed, "i32" if packed >= 4 else "i64"
    yield SHIFT.value, 4, "i64"


def _exact_types(f: str, cast: str | None, numel: str, half: str) -> Types:
    types = _step_types("i32", f, cast, numel) | {"digits": "*u8"}
    types |= {"num_bytes": "i64:16" if numel == "i64" else "i32:16"}
    types |= dict.fromkeys(kernels.STEP, "i32") | {"scale": "fp32", "unscale": "fp32"}
    return types | {"half": half}


def _exact_steps() -> Iterator[Specialisation]:
    """The inverses take the types in turn: the passes have each of them with all."""
    for k, (form, packed, half) in enumerate(_forms()):
        for f, cast, _ in _F_CAST_VJP:
            yield _exact_step(form, packed, half, False, f, cast)
        f, cast, _ = _F_CAST_VJP[k % 3]
        yield _exact_step(form, packed, half, True, f, cast)
    yield _exact_step(*_TYPICAL, False, "fp16", "fp16")
    for numel in _NUMELS:
        yield _exact_step(*_TYPICAL, False, "bf16", "bf16", numel=numel)
    for leaves, invert in product((_LEAVES, _MOST_LEAVES), (False, True)):
        yield _exact_step(*_TYPICAL, invert, "bf16", "bf16", leaves=leaves)


def _exact_step(
    form: int,
    packed: int,
    half: str,
    invert: bool,
    f: str,
    cast: str | None,
    numel: str = "i32:16",
    leaves: int = 1,
) -> Specialisation:
    types = _exact_types(f, cast, numel, half) | {"flag": None if invert else "*i32"}
    label = f"{'invert' if invert else 'update'}_exact form {form} digits {packed} half {half}"
    return _launch(
        f"{label} {f} cast {cast} numel {numel}",
        *(kernels.exact_kernel, types, leaves),
        FORM=form,
        INVERT=invert,
        DIGITS_PER_BYTE=packed,
        LANES=_lanes(packed),
    )


def _lanes(packed: int) -> int:
    return 1024 if packed == 1 else 512


def _exact_passes() -> Iterator[Specialisation]:
    for form, packed, half in _forms():
        for f, cast, vjp in _F_CAST_VJP:
            yield _exact_pass(form, packed, half, f, cast, vjp)
        yield _exact_pass(form, packed, half, "bf16", None, "bf16", start=True)
    yield _exact_pass(*_TYPICAL, "fp16", "fp16", "fp16")
    for f, _, vjp in _F_CAST_VJP:
        yield _exact_pass(*_TYPICAL, f, None, vjp, start=True)
    for leaves in (_LEAVES, _MOST_LEAVES):
        yield _exact_pass(*_TYPICAL, "bf16", "bf16", "bf16", leaves=leaves)
        yield _exact_pass(*_TYPICAL, "bf16", None, "bf16", leaves=leaves, start=True)


def _exact_pass(
    form: int,
    packed: int,
    half: str,
    f: str,
    cast: str | None,
    vjp: str,
    leaves: int = 1,
    start: bool = False,
) -> Specialisation:
    types = _exact_types(f, cast, "i32:16", half) | _carried(f, vjp, start) | {"steps": "i32"}
    types |= _numbers("fp32", "grad_scale", "seed_beta", "after")
    label = f"pass_exact{' start' if start else ''} form {form} digits {packed} half {half}"
    return _launch(
        f"{label} {f} cast {cast} vjp {vjp}",
        *(passes.exact_pass_kernel, types, leaves),
        FORM=form,
        DIGITS_PER_BYTE=packed,
        LANES=_lanes(packed),
        BLOCK=1024,
    )


# ---- conversions and the residual ------------------------------------------------------------


def _conversions() -> Iterator[Specialisation]:
    for f, flag in product(("fp32", "bf16", "fp16"), ("*i32", None)):
        yield _quantize(f, flag)
    yield _quantize("bf16", "*i32", leaves=_LEAVES)
    for f in ("fp64", "fp32", "bf16", "fp16"):
        yield _dequantize(f)
    yield _dequantize("bf16", leaves=_LEAVES)


def _quantize(f: str, flag: str | None, leaves: int = 1) -> Specialisation:
    types: Types = {"x": f"*{f}", "out": "*i32", "flag": flag, "numel": "i32:16", "scale": "fp32"}
    label = f"quantize {f}" + (" flag" if flag else "")
    return _launch(label, kernels.quantize_kernel, types, leaves, BLOCK=1024)


def _dequantize(f: str, leaves: int = 1) -> Specialisation:
    types: Types = {"state": "*i32", "out": f"*{f}", "numel": "i32:16", "unscale": "fp32"}
    return _launch(f"dequantize {f}", kernels.dequantize_kernel, types, leaves, BLOCK=1024)


def _residuals() -> Iterator[Specialisation]:
    for z, f in _STATE_F:
        yield _residual(z, f)
    for numel in _NUMELS:
        yield _residual("fp32", "bf16", numel)
        yield _norms(numel)
    for leaves in (_LEAVES, _MOST_LEAVES):
        yield _residual("fp32", "bf16", leaves=leaves)
        yield _norms(leaves=leaves)


def _residual(z: str, f: str, numel: str = "i32:16", leaves: int = 1) -> Specialisation:
    types: Types = {"z": f"*{z}", "f": f"*{f}", "sums": "*fp64", "numel": numel}
    kernel = kernels.residual_kernel
    return _launch(f"residual {z} {f} numel {numel}", kernel, types, leaves, COLUMNS=256, ROWS=16)


def _norms(numel: str = "i32:16", leaves: int = 1) -> Specialisation:
    types: Types = {"sums": "*fp64", "result": "*fp64", "numel": numel}
    kernel = kernels.norms_kernel
    return _launch(f"norms numel {numel}", kernel, types, leaves, COLUMNS=256, ROWS=16)
