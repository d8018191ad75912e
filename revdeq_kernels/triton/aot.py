"""The signatures with which the Triton kernels are launched, for compiling them without a GPU.

Imports triton only, not torch, so that a compiler of another version can be tried by itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FLOATS = ("fp64", "fp32", "bf16", "fp16")
_STATE_F = [
    (state, f) for state in ("fp64", "fp32") for f in _FLOATS if (state, f) != ("fp32", "fp64")
]
_STATE_F += [("bf16", "bf16"), ("fp16", "fp16")]
_ADJOINT = [("fp64", "fp64", "fp64"), ("fp32", "fp32", "fp32")]
_ADJOINT += [("fp32", vjp, seed) for seed in ("bf16", "fp16") for vjp in ("fp32", seed)]
_DIGITS = {
    0: (8, 4, 2, 1),
    1: (5, 3, 2, 1),
    2: (8, 5, 4, 3, 2, 1),
}  # by form: shift, integer, general


def load_kernels() -> Any:
    """The module half_step.py, loaded by its path: importing the package would import torch."""
    path = Path(__file__).with_name("half_step.py")
    spec = importlib.util.spec_from_file_location("revdeq_half_step", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def signatures() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any]]]:
    """Yields (label, kernel, signature, keywords) for every specialisation that can be launched.

    A signature maps each parameter to its type, as triton.compiler.ASTSource takes it; keywords are
    the kernel's constants and the compiler's options.
    """
    kernels = load_kernels()
    for label, kernel, types, constants in _specialisations(kernels):
        yield label, kernel, types, constants | kernels.OPTIONS


def _specialisations(kernels: Any) -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any]]]:
    yield from _float_signatures(kernels)
    yield from _exact_signatures(kernels)
    for grad, vjp, seed in _ADJOINT:
        number = "i64" if grad == "fp64" else "fp32"
        types = {"grad": f"*{grad}", "vjp": f"*{vjp}", "seed": f"*{seed}", "numel": "i32"}
        types |= {"scale": number, "beta": number}
        yield f"adjoint {grad} {vjp} {seed}", kernels.adjoint_kernel, types, {"BLOCK": 1024}
    for f in _FLOATS[1:]:
        types = {"x": f"*{f}", "out": "*i32", "flag": "*i32", "numel": "i32", "scale": "fp32"}
        yield f"quantize {f}", kernels.quantize_kernel, types, {"BLOCK": 1024}
    for f in _FLOATS:
        types = {"state": "*i32", "out": f"*{f}", "numel": "i64", "unscale": "fp32"}
        yield f"dequantize {f}", kernels.dequantize_kernel, types, {"BLOCK": 1024}


def _float_signatures(kernels: Any) -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any]]]:
    for state, f in _STATE_F:
        for invert in (False, True):
            for cast in (None, f, "fp32"):
                number = "i64" if state == "fp64" else "fp32"
                types = {"state": f"*{state}", "f": f"*{f}", "numel": "i32"}
                types |= {"keep": number, "beta": number}
                constants: dict[str, Any] = {"INVERT": invert, "BLOCK": 1024}
                _add_pointer(types, constants, "cast", cast)
                label = f"{'invert' if invert else 'update'} {state} {f} cast {cast}"
                yield label, kernels.half_step_kernel, types, constants


def _exact_signatures(kernels: Any) -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any]]]:
    step = dict.fromkeys(kernels.STEP, "i32") | {"scale": "fp32", "unscale": "fp32", "half": "i64"}
    for form, digits in _DIGITS.items():
        for packed in digits:
            for invert in (False, True):
                for f, cast in (("fp32", None), ("bf16", "bf16"), ("fp16", "fp32")):
                    types = {"state": "*i32", "digits": "*u8", "f": f"*{f}"}
                    types |= {"numel": "i64", "num_bytes": "i32"} | step
                    constants = {"FORM": form, "INVERT": invert, "DIGITS_PER_BYTE": packed}
                    constants["LANES"] = 1024 if packed == 1 else 512
                    _add_pointer(types, constants, "flag", None if invert else "i32")
                    _add_pointer(types, constants, "cast", cast)
                    label = (
                        f"{'invert' if invert else 'update'}_exact form {form} digits {packed} {f}"
                    )
                    yield label, kernels.exact_kernel, types, constants


def _add_pointer(
    types: dict[str, str], constants: dict[str, Any], name: str, element: str | None
) -> None:
    """A pointer that may be None; Triton treats a None as a constant."""
    if element is None:
        types[name] = "constexpr"
        constants[name] = None
    else:
        types[name] = f"*{element}"
