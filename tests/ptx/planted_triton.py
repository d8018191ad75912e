"""Faults planted in Triton's compiled code, and how each is run by test_planted_triton.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.ops.arguments import good_arguments
from tests.ops.device_checks import any_bits
from tests.ptx import triton_grids, triton_ops
from tests.ptx.triton_ops import Case
from tools.ptx.errors import Fault
from tools.ptx.triton import Gpu, executed

Change = Callable[[str], str]


@dataclass(frozen=True)
class Planted:
    """A fault in the PTX of an op, and the arguments with which it must be detected."""

    op: str
    change: Change
    size: int = 1003
    options: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[dict[str, Any]], dict[str, Any]] = dict
    sm: int = 90


def everywhere(pattern: str, replacement: str = "") -> Change:
    """A change that replaces all matches of a regular expression."""
    return lambda text: re.sub(pattern, replacement, text)


def once(pattern: str, replacement: str) -> Change:
    """A change that replaces the first match."""
    return lambda text: re.sub(pattern, replacement, text, count=1)


def fused(text: str) -> str:
    """Fuse every product that is added once into an instruction that rounds once."""
    for product, a, b in re.findall(r"mul\.rn\.f32\s+(%r\d+), (%r\d+), (%r\d+);", text):
        text = re.sub(
            rf"add\.rn\.f32(\s+%r\d+), (%r\d+), {product};", rf"fma.rn.f32\1, {a}, {b}, \2;", text
        )
    return text


def with_the_largest_nan(arguments: dict[str, Any]) -> dict[str, Any]:
    """One element of the state is a NaN that overflows if it is rounded as a number."""
    arguments["state"].view(torch.int32)[7] = -1
    return arguments


BF16 = {"state": torch.bfloat16, "f": torch.bfloat16, "cast": None}
WIDE_F = {"f": torch.float32, "cast": torch.float32}

PLANTED = {
    "the mask of a store is dropped": Planted("update_", everywhere(r"@%p\d+ (st\.glob)", r"\1")),
    "the mask of a load is dropped": Planted("adjoint_", everywhere(r"@%p\d+ (ld\.glob)", r"\1")),
    "one element too many": Planted("invert_", everywhere(r"setp\.lt\.s64", "setp.le.s64")),
    "products are rounded toward zero": Planted("update_", everywhere(r"mul\.rn", "mul.rz")),
    "sums are rounded toward zero": Planted("adjoint_", everywhere(r"add\.rn", "add.rz")),
    "a product and a sum are fused": Planted("update_", fused),
    "a quotient is a product": Planted(
        "invert_",
        everywhere(
            r"div\.rn\.f32\s+(%r\d+), (%r\d+), (%r\d+);",
            r"rcp.rn.f32 \1, \3; mul.rn.f32 \1, \2, \1;",
        ),
    ),
    "bfloat16 numbers are four bytes apart": Planted(
        "update_", everywhere(r"(shl\.b64\s+%rd\d+, %rd\d+, )1;", r"\g<1>2;")
    ),
    "elements of a vector change places": Planted(
        "update_",
        everywhere(r"(ld\.shared\.v4\.b32\s+\{)(%r\d+), (%r\d+)", r"\1\3, \2"),
        size=1024,
    ),
    "a shift forgets the sign": Planted(
        "update_exact_", everywhere(r"shr\.s(32|64)", r"shr.u\1"), options={"beta": 0.5}
    ),
    "a quotient is shifted by a place too few": Planted(
        "update_exact_", everywhere(r"shr\.u64(\s+%rd\d+, %rd\d+, )30;", r"shr.u64\g<1>29;")
    ),
    "the flag is not raised": Planted(
        "update_exact_",
        everywhere(r"@%p\d+ atom\.[\w.]+ [^;]+;"),
        options=WIDE_F,
        prepare=any_bits,
    ),
    "half is rounded up, not to even": Planted(
        "update_",
        everywhere(r"(add\.s32\s+%r\d+, %r\d+, )32767;", r"\g<1>32768;"),
        options=BF16 | {"beta": 0.5},
    ),
    "a NaN is rounded as a number is": Planted(
        "update_",
        everywhere(r"setp\.num\.f32(\s+%p\d+, )(%r\d+), %r\d+;", r"setp.eq.b32\1\2, \2;"),
        prepare=with_the_largest_nan,
    ),
    # Of two pointers, or since Triton 3.9 of the addresses of two parameters.
    "a program takes the state of another leaf": Planted(
        "update_.list",
        once(
            r"(selp\.b64\s+%rd\d+, |selp\.b32\s+%r\d+, (?=[^;]*;\s*ld\.param\.b64))"
            r"(%rd?\d+), (%rd?\d+),",
            r"\1\3, \2,",
        ),
    ),
    "a program begins a leaf too late": Planted(
        "adjoint_.list", everywhere(r"setp\.gt\.s32", "setp.ge.s32"), size=5000
    ),
    "a program of the adjoint takes a step": Planted(
        "invert_z_adjoint_y_", everywhere(r"setp\.ge\.s32", "setp.gt.s32")
    ),
    "a barrier is missing": Planted("residual", everywhere(r"bar\.sync\s+0;"), size=9000),
    "lanes are summed in another order": Planted(
        "residual",
        everywhere(r"(shfl\.sync\.bfly\.b32\s+%r\d+, %r\d+, )16, ", r"\g<1>8, "),
        size=9000,
    ),
    "what is not loaded is not zero": Planted(
        "residual",
        everywhere(r"mov\.u\d+ %r\w*\d+, %r\w*\d+;(\s+@%p\d+ ld\.global)", r"\1"),
        size=9000,
    ),
    "a channel is a quotient, not a remainder": Planted(
        "update_.channels", everywhere(r"rem\.u32", "div.u32")
    ),
}


def attempt(name: str) -> str:
    """How a fault is detected; an empty string if it is not."""
    planted = PLANTED[name]
    shape = (planted.size // 59, 59) if ".channels" in planted.op else (planted.size,)
    case = Case(planted.prepare(good_arguments(planted.op, shape, **planted.options)))
    with executed(planted.sm) as gpu:
        triton_ops.check(planted.op, case)
        return noticed(gpu, planted.change, lambda: triton_ops.check(planted.op, case))


def noticed(gpu: Gpu, change: Change, run: Callable[[], object]) -> str:
    """The outcome of a run with the change; ValueError if nothing was changed."""
    changed = []

    def planted(text: str) -> str:
        other = change(text)
        changed.append(other != text)
        return other

    gpu.change = planted
    try:
        run()
    except (AssertionError, Fault) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        gpu.change = None
        if not any(changed):
            raise ValueError("expected PTX to plant a fault in, found no such place")
    return ""


# ---- what takes more than other text ---------------------------------------------------------


def attempt_specialization() -> str:
    """The kernel of aligned tensors is launched on tensors that are not."""
    loaded: list[str] = []
    arguments = good_arguments("update_", (1024,))
    with executed(90) as gpu:
        gpu.change = lambda text: loaded.append(text) or text
        triton_ops.check("update_", Case(arguments))
        aligned = loaded[0]
        return noticed(
            gpu, lambda _: aligned, lambda: triton_ops.check("update_", Case(arguments, 1))
        )


def attempt_index(sm: int) -> str:
    """The offset of an element is truncated to 32 bits, in a leaf of 2^33 elements."""
    cut = everywhere(
        r"shl\.b64(\s+%rd\d+), (%rd\d+), 2;", r"and.b64\1, \2, 0x3fffffff; shl.b64\1,\1, 2;"
    )
    call = triton_grids.Call("adjoint_.list", [2**33], {})
    with executed(sm) as gpu:
        return noticed(gpu, cut, lambda: call.check(gpu))
