"""The signatures of the equilibrium cell's kernels, for ``signatures.py``.

Every configuration is listed with the activation and exact-step form that take the most registers,
and with those that take the fewest; one configuration is listed with all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from revdeq_kernels.dtypes import TRITON, WIDEST
from revdeq_kernels.triton.device import cell as device
from revdeq_kernels.triton.device.activations import GELU, RELU, SILU, TANH
from revdeq_kernels.triton.device.exact_step import GENERAL, INTEGER, SHIFT
from revdeq_kernels.triton.device.half_step import OPTIONS
from revdeq_kernels.triton.kernels import cell, gluon_cell

Form = tuple[Any, int, str, bool] | None
"""For an exact state: the form, the digits per byte, the type of `half`, and whether beta > 1;
None for float32."""

_LEAST: Form = (SHIFT, 8, "i32", False)
_MOST: Form = (GENERAL, 1, "i64", True)

_WITH_ALL = {"triton": 64, "gluon": 128}
"""The features of the configuration that is listed with all activations and forms."""

_OF_PROGRAMS = ("*fp32", "*fp32", "*i32")
"""The results of each program of a backward pass."""

_NAMES = {name: dtype for dtype, name in TRITON.items()}

_KERNELS: dict[str, Any] = {"triton": cell, "gluon": gluon_cell}


def architectures() -> dict[str, tuple[int, ...]]:
    """The compute capabilities of each signature, by its label."""
    found: dict[str, tuple[int, ...]] = {}
    for label, _, types, constants in signatures():
        features = constants["CELL"].features if "CELL" in constants else 0
        w = _NAMES[types.get("inputs", ["*bf16"])[0].removeprefix("*")]
        widest = WIDEST["gluon" if label.startswith("gluon") else "triton"][w]
        found[label] = tuple(a for a, most in widest.items() if features <= most)
    return found


def programs() -> dict[str, int]:
    """How many programs per multiprocessor a launch starts, by label of the signature."""
    found = {}
    for label, *_, constants in signatures():
        if "CELL" in constants:
            name, _, way, w, features = label.split()[:5]
            configuration = _KERNELS[name].CONFIGURATIONS[w][int(features)]
            found[label] = configuration.programs(constants["CELL"].exact, way == "back")
    return found


def signatures() -> Iterator[tuple[str, Any, dict[str, Any], dict[str, Any]]]:
    """Like ``signatures.signatures``."""
    for name, kernels in _KERNELS.items():
        for w, features in kernels.CONFIGURATIONS.items():
            forms, both = (None, _LEAST, _MOST), (False, True)
            for d, form, back, halt in product(features, forms, both, both):
                yield _signature(name, w, d, GELU, form, back, halt)
            if w == "bf16":  # the one that the benchmarks measure
                for d, back in product(features, both):
                    yield _signature(name, w, d, TANH, _LEAST, back)
        for act, back in product((RELU, SILU), (False, True)):
            yield _signature(name, "bf16", _WITH_ALL[name], act, _LEAST, back)
        others = ((INTEGER, 2, "i64", False), (GENERAL, 4, "i32", False), (SHIFT, 4, "i32", True))
        for form, back in product(others, (False, True)):
            yield _signature(name, "bf16", _WITH_ALL[name], SILU, form, back)
    yield _sum_programs()


def _signature(
    implementation: str,
    w: str,
    features: int,
    act: Any,
    form: Form,
    back: bool,
    halt: bool = False,
) -> tuple[str, Any, dict[str, Any], dict[str, Any]]:
    kernels = _KERNELS[implementation]
    of_w, state = f"*{w}", "*fp32" if form is None else "*i32"
    digits = None if form is None else "*u8"
    taken = "*i32" if halt else None
    types: dict[str, Any] = {"inputs": (of_w, of_w, "*fp32"), "rows": "i32", "steps": "i32"}
    types |= dict.fromkeys(device.Step._fields, "i32")
    types |= dict.fromkeys(("keep", "beta", "scale", "unscale"), "fp32")
    configuration = kernels.CONFIGURATIONS[w][features]
    number, packed, over = (form[0].value, form[1], form[3]) if form else (0, 1, False)
    compiled_for = device.Cell(
        *(act.value, form is not None, number, packed, over, halt),
        *(features, configuration.tile),
    )
    if back:
        types |= {"ends": ("*fp32", "*fp32", state, state, digits, taken)}
        types |= {"grads": (of_w, "*fp32"), "of_programs": _OF_PROGRAMS}
    else:
        exact = (None, None, None) if form is None else ("*i32", digits, "*i32")
        judged = (taken, "*fp32" if halt else None)
        types |= {"out": ("*fp32", "*fp32", *exact, *judged), "tol": "fp32"}
    if form is not None:
        types |= {"half": form[2]}
    kernel = kernels.backward_kernel if back else kernels.forward_kernel
    kind = "float32" if form is None else f"form {form[0].value} digits {form[1]}"
    way = "back" if back else "forward"
    label = f"{implementation} cell {way} {w} {features} act {act.value} {kind}"
    label += " beta > 1" if form and form[3] else ""
    label += " halting" if halt else ""
    options = configuration.options(form is not None, back)
    return label, kernel, types, {"CELL": compiled_for} | OPTIONS | options


def _sum_programs() -> tuple[str, Any, dict[str, Any], dict[str, Any]]:
    types = {"of_programs": _OF_PROGRAMS, "out": ("*fp32", "*fp32", "*i32"), "programs": "i32"}
    constants = {"SIZE": 4096, "BLOCK": cell.SUM_BLOCK.value}
    return "cell sum of programs", cell.sum_programs, types, constants | OPTIONS
