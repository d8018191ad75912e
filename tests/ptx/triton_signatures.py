"""A call for every signature in tools/aot, for the kernels of the ops.

Compilation runs in a separate process (``compiling.py``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.compiler import ASTSource, make_backend
from triton.runtime.driver import driver

from revdeq_kernels.dtypes import TRITON
from revdeq_kernels.triton.device.half_step import OPTIONS
from revdeq_kernels.triton.kernels import half_step as half_step_kernels
from revdeq_kernels.triton.kernels import passes as pass_kernels
from revdeq_kernels.triton.launch import half_step, passes
from revdeq_kernels.triton.launch.leaves import step_numbers
from tests.ops.arguments import (
    NAMESPACES,
    arguments_of_leaf,
    by_field,
    call,
    channel_arguments,
    lists_of,
)
from tests.ops.device_checks import FORM_BETAS, any_bits, placed
from tests.ptx import triton_grids, triton_ops
from tests.ptx.triton_ops import Case
from tools.aot.compile import as_launched
from tools.aot.signatures import ARCHITECTURES, signatures
from tools.ptx.errors import Missing
from tools.ptx.kernel import Kernel
from tools.ptx.machine import Machine
from tools.ptx.triton import Gpu, executed

LARGE = 2**31

SIZES = {
    ("1", "i32:16"): 1,
    ("i32", "i32:16"): 1003,
    ("i32:16", "i32:16"): 1040,
    ("i32", "i64:16"): LARGE - 1,
    ("i64", "i32:16"): LARGE + 5,
    ("i64", "i64:16"): 4 * LARGE + 5,
}
"""By the types of numel and num_bytes: the number of elements of a leaf with these types."""

LAYOUTS = {
    ("1", "1", "i32:16"): ((1040,), (1,), 0),
    ("i32:16", "i32:16", "1"): ((5, 16, 16), (16, 1), 1),
    ("i32", "i32", "i32"): ((16, 5, 13), (5, 1), 3),
    ("1", "i32:16", "1"): ((65, 16), (16,), 1),
}
"""By the types of inner, channels and stride: shapes of state and beta, and the stride of beta."""

_DTYPES = {short: getattr(torch, name) for name, short in TRITON.items()}


class Listed(NamedTuple):
    """A signature of tools/aot/signatures.py."""

    label: str
    kernel: Any
    signature: dict[str, Any]
    keywords: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the kernel."""
        return self.kernel.fn.__name__

    def compiled(self) -> tuple[ASTSource, dict[str, Any]]:
        """The source that a launch compiles for it on the active architecture, and the options."""
        target: Any = driver.active.get_current_target()
        return as_launched(self.kernel, self.signature, self.keywords, make_backend(target))


def listed() -> list[Listed]:
    """The signatures of the ops' kernels; those of the equilibrium cell are not ops."""
    kernels = (half_step_kernels, pass_kernels)
    rows = itertools.starmap(Listed, signatures())
    return [row for row in rows if row.kernel.fn.__module__ in {k.__name__ for k in kernels}]


# ---- the call of a signature -----------------------------------------------------------------


class Small(NamedTuple):
    """A call on tensors that have memory."""

    op: str
    case: Case

    def check(self, _gpu: Gpu) -> None:
        """Like ``triton_ops.check``."""
        triton_ops.check(self.op, self.case)

    def launch(self) -> None:
        """Call the op."""
        call(self.op, placed(self.case.arguments, "cpu"), NAMESPACES["triton"])


def call_of(row: Listed) -> Small | triton_grids.Call:
    """A call that launches the kernel with this signature."""
    kinds: dict[str, Any] = dict.fromkeys(n for n, v in row.keywords.items() if v is None)
    kinds |= by_field(row.signature)
    op, options = _op_of(row, kinds), _options_of(row, kinds)
    if row.name == "channel_step_kernel":
        shape, beta, stride = LAYOUTS[tuple(kinds[n] for n in ("inner", "channels", "stride"))]
        arguments = channel_arguments(op, shape, beta, **options)
        if stride > 1:
            strides = tuple(stride if n > 1 else 1 for n in beta)
            wide = torch.zeros(math.prod(beta) * stride, dtype=arguments["beta"].dtype)
            arguments["beta"] = wide.as_strided(beta, strides).copy_(arguments["beta"])
        return Small(op, Case(any_bits(arguments)))
    bytes_of = kinds.get("num_bytes", ("i32:16",) * len(kinds["numel"]))
    sizes = [SIZES[pair] for pair in zip(kinds["numel"], bytes_of, strict=True)]
    if max(sizes) >= LARGE - 1:
        return triton_grids.Call(f"{op}.list", sizes, options)
    if len(sizes) > 1:
        op = f"{op}.list"
        leaves = [arguments_of_leaf(op, (n,), seed=k, **options) for k, n in enumerate(sizes)]
        return Small(op, Case(any_bits(lists_of(op, leaves))))
    arguments = arguments_of_leaf(op, tuple(sizes), **options)
    if kinds.get("scale") == "i32":
        arguments["scale"] = 0.0  # of a double, whose bits are passed as an integer
    return Small(op, Case(any_bits(arguments)))


def _op_of(row: Listed, kinds: dict[str, Any]) -> str:
    invert = row.keywords.get("INVERT", "flag" in kinds and kinds["flag"] is None)
    step, exact = "invert" if invert else "update", "_exact" * ("FORM" in row.keywords)
    back = "invert_z_adjoint_y" if kinds.get("seed") else "invert_y_adjoint_z0"
    return {
        "half_step_kernel": f"{step}_",
        "exact_kernel": f"{step}{exact}_",
        "channel_step_kernel": f"{step}_.channels",
        "pass_kernel": f"{back}_",
        "exact_pass_kernel": f"{back}{exact}_",
        "adjoint_kernel": "adjoint_",
        "norms_kernel": "residual",
    }.get(row.name, row.name.removesuffix("_kernel"))


def _options_of(row: Listed, kinds: dict[str, Any]) -> dict[str, Any]:
    """For ``arguments_of_leaf``: the dtypes, and a beta for the form of an exact step."""
    dtypes = {
        name: _DTYPES[kind.removeprefix("*")]
        for name, kind in ((n, k[0] if isinstance(k, tuple) else k) for n, k in kinds.items())
        if kind and kind.removeprefix("*") in _DTYPES and kind.startswith("*")
    }
    of_option = {"state": ("z", "state"), "f": ("out", "seed", "x", "f"), "vjp": ("vjp",)}
    found = {o: dtypes[n] for o, names in of_option.items() for n in names if n in dtypes}
    found["cast"] = dtypes.get("cast")
    if row.name == "quantize_kernel":
        found["optional"] = kinds["flag"] is not None
    if "FORM" in row.keywords:
        of_form = (row.keywords["FORM"], row.keywords["DIGITS_PER_BYTE"], kinds["half"])
        found["beta"], found["tie"] = next(n for n in _numbers() if _form(*n) == of_form)
    return found


def _numbers() -> Iterator[tuple[float, int]]:
    """Values of beta and tie: at base 4, `half` overflows int32 with one of the two ties."""
    yield from itertools.product([*FORM_BETAS, 0.75, 1 / 3, 0.9], (1, 0))


def _form(beta: float, tie: int) -> tuple[int, int, str]:
    form, digits, step = step_numbers(beta, 16, tie)
    return form, digits, "i64" if step.half >= 2**31 else "i32"


# ---- what is asserted ------------------------------------------------------------------------


def not_launched(sm: int) -> list[str]:
    """The labels of the signatures whose calls launch another: none is compiled or run."""
    with executed(sm):
        return [row.label for row in listed() if _key(row.compiled()[0]) not in _launched(row, sm)]


def _launched(row: Listed, sm: int) -> set[str]:
    found = set()

    def record(kernel: Any, _programs: int, _lead: Tensor, *args: Any, **constants: Any) -> None:
        *_, backend, binder = kernel.device_caches[sm]
        options = constants | OPTIONS | {"debug": False, "instrumentation_mode": ""}
        bound, specialization, rest = binder(*args, **options)
        packed = kernel._pack_args(backend, options, bound, specialization, rest)
        found.add(_key(ASTSource(kernel, *packed[1:])))

    with ExitStack() as replaced:
        for module in (half_step, passes):
            replaced.enter_context(mock.patch.object(module, "launch", record))
        call_of(row).launch()
    return found


def _key(source: ASTSource) -> str:
    """A key for what is compiled, independent of order."""
    constants = sorted(source.constants.items())
    divisible = sorted(path for path, known in source.attrs.items() if known)
    return f"{source.fn.cache_key} {source.signature} {constants} {divisible}"


def check(kernel: str, sm: int, every: int = 1) -> int:
    """Run a call for each of the kernel's signatures, or for every n-th."""
    rows = [row for row in listed() if row.name == kernel][::every]
    for row in rows:
        with executed(sm) as gpu:
            call_of(row).check(gpu)
            launched = {_key(launch.source) for launch in gpu.launches}
            assert _key(row.compiled()[0]) in launched, row.label
    return len(rows)


def missing(sm: int, every: int = 1, cells: bool = False) -> dict[str, str]:
    """The signatures with an instruction that the executor does not support, and that instruction.

    For the ops' kernels, or for the equilibrium cell's kernels on this architecture.
    """
    ops = {row.label for row in listed()}
    rows = [row for row in itertools.starmap(Listed, signatures()) if (row.label in ops) != cells]
    found = {}
    with executed(sm):
        for row in [r for r in rows if sm in ARCHITECTURES.get(r.label, (sm,))][::every]:
            source, options = row.compiled()
            ptx = triton.compile(source, options=options).asm["cubin"].decode()
            try:
                Machine(Kernel(ptx))
            except Missing as lacking:
                found[row.label] = str(lacking)
    return found
