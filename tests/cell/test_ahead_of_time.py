"""Every launch of the equilibrium cell's kernels is compiled ahead of time, and nothing else."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from revdeq_kernels.dtypes import WIDEST
from revdeq_kernels.ops.cell import choice as cell_choice
from tests.cell.linear_cells import make
from tests.conftest import BACKENDS

if "triton" not in BACKENDS:
    pytest.skip("Triton's interpreter is off", allow_module_level=True)

from revdeq_kernels.triton.kernels import cell as kernels
from revdeq_kernels.triton.kernels import gluon_cell
from revdeq_kernels.triton.launch import cell as cell_launch
from tools.aot import cell as cells_compiled
from tools.aot import cell_record
from tools.aot import compile as aot

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


MODULES = {"triton": kernels, "gluon": gluon_cell}


def test_what_is_offered_is_what_is_compiled() -> None:
    assert MODULES.keys() == cell_choice.FEATURES.keys() == WIDEST.keys()
    for name, module in MODULES.items():
        offered = {cell_launch.TYPES[w]: ds for w, ds in cell_choice.FEATURES[name].items()}
        assert offered == {w: tuple(found) for w, found in module.CONFIGURATIONS.items()}
        assert {str(w).removeprefix("torch.") for w in cell_choice.FEATURES[name]} == set(
            WIDEST[name]
        )
    compiled = cells_compiled.architectures()
    found = {(n.split()[0], n.split()[3]): where for n, where in compiled.items() if " 128 " in n}
    of_16_bits = product(("bf16", "fp16"), (("triton", (90, 100)), ("gluon", (90,))))
    want = {(name, w): where for w, (name, where) in of_16_bits}
    assert found == want | {("gluon", "fp32"): (90, 100)}
    assert compiled["triton cell back bf16 64 act 2 float32"] == (80, 90, 100)
    assert tuple(cell_launch.ACTS) == cell_choice.GPU_ACTS


def type_of(argument: Any) -> Any:
    """As in tools/aot/cell.py; `half` is an integer of 32 bits up to base 4."""
    if isinstance(argument, tuple):
        return tuple(map(type_of, argument))
    if isinstance(argument, Tensor):
        types = cell_launch.TYPES | {torch.int32: "i32", torch.uint8: "u8"}
        return f"*{types[argument.dtype]}"
    if isinstance(argument, int):
        return "i32" if -(2**31) <= argument < 2**31 else "i64"
    return "fp32" if isinstance(argument, float) else argument


def test_every_launch_is_compiled_ahead_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All configurations and dtypes, with the activation that tools/aot/cell.py has them with."""
    made: list[tuple[Any, dict[str, Any]]] = []

    def record(kernel: Any, programs: int, lead: Tensor, *args: Any, **constants: Any) -> None:
        assert programs > 0
        names = kernel.arg_names[: len(args)]
        types = {n: type_of(a) for n, a in zip(names, args, strict=True)}
        made.append((kernel.fn.__name__, types | constants))

    monkeypatch.setattr(cell_launch, "launch", record)
    listed = [
        (label.split()[0], kernel.fn.__name__, {**signature, **keywords, "enable_fp_fusion": None})
        for label, kernel, signature, keywords in cells_compiled.signatures()
    ]
    for implementation, module in MODULES.items():
        launcher = cell_launch.Launcher(module)
        for dtype, features in cell_choice.FEATURES[implementation].items():
            forms = ((0.5, "float32"), (0.5, "exact"), (1.04877, "exact"))
            for d, (beta, state), tol in product(features, forms, (0.0, 1e-3)):
                cell = make(5, d, dtype, beta=beta, state=state, act="gelu", tol=tol)
                out = launcher.forward(cell.tensors, cell.numbers)
                ends = out.ends(cell.grad_y, cell.grad_z, cell.numbers)
                launcher.backward(ends, cell.tensors, cell.numbers)
        assert {name for name, _ in made} == {"forward_kernel", "backward_kernel", "sum_programs"}
        for name, arguments in made:
            label = "cell" if name == "sum_programs" else implementation
            if name == "sum_programs":
                arguments["SIZE"] = 4096
            found = (label, name, arguments | {"enable_fp_fusion": None})
            assert found in listed, (name, arguments)
        made.clear()


def test_the_record_is_of_these_kernels_and_their_configurations() -> None:
    """What a launch starts fits by the record, which has every kernel that is compiled."""
    kernels = cell_record.read()["kernels"]
    compiled = cells_compiled.architectures()
    listed = {label: {f"sm_{a}" for a in where} for label, where in compiled.items()}
    del listed["cell sum of programs"]
    assert {label: set(by_architecture) for label, by_architecture in kernels.items()} == listed
    found = {
        label: {architecture: cell_record.Taken(**taken) for architecture, taken in where.items()}
        for label, where in kernels.items()
    }
    assert cell_record.misfits(found, cells_compiled.programs()) == []


def test_a_way_back_is_compared_with_its_way_forward_where_that_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = ("triton cell back bf16 64", "triton cell forward bf16 64")
    monkeypatch.setattr(aot, "SIGNATURES", [(label, None, {}, {}) for label in labels], False)
    (back, forward), target = (aot.Compiled(evaluated=(way,)) for way in "bf"), aot.TARGETS[0]
    assert aot.differing({(0, target): back}) == {}
    assert aot.differing({(0, target): back, (1, target): back}) == {}
    assert list(aot.differing({(0, target): back, (1, target): forward})) == [(0, target)]
