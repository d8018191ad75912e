"""The equilibrium cell's Triton kernels: their shapes, when they run, and how they are compiled."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import revdeq_kernels as rk
from revdeq_kernels.core import backends, first_use
from revdeq_kernels.dtypes import WIDEST
from revdeq_kernels.ops.cell import checks as cell_checks
from revdeq_kernels.ops.cell import choice as cell_choice
from tests.cell.linear_cells import make, of_rows, run
from tests.cell.tolerances import assert_within_bounds
from tests.conftest import BACKENDS

if "triton" not in BACKENDS:
    pytest.skip("Triton's interpreter is off", allow_module_level=True)

from revdeq_kernels.triton.kernels import cell as kernels
from revdeq_kernels.triton.kernels import gluon_cell
from revdeq_kernels.triton.launch import cell as cell_launch
from tools.aot import cell as cells_compiled

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("dtype", "d"), [(F32, 32), (F32, 64), (BF16, 32), (BF16, 64), (F16, 64), (F16, 128)]
)
@pytest.mark.parametrize("rows", [1, 64, 101])
def test_shapes_of_the_kernel(rows: int, dtype: torch.dtype, d: int) -> None:
    """Part of a tile, whole tiles, and several for a program."""
    cell = make(rows, d, dtype, steps=1)
    assert_within_bounds(cell, run(cell, implementation="triton"))


@pytest.mark.parametrize(("dtype", "d"), [(F32, 32), (BF16, 64)])
def test_a_row_does_not_depend_on_the_tiles_of_a_program(dtype: torch.dtype, d: int) -> None:
    cell = make(165, d, dtype, steps=3)
    tile = kernels.CONFIGURATIONS[cell_launch.TYPES[dtype]][d].tile
    all_rows, few = (run(c, implementation="triton") for c in (cell, of_rows(cell, slice(tile))))
    for name in ("y", "z", "grad_u", "grad_z0"):
        assert torch.equal(getattr(few, name), getattr(all_rows, name)[:tile]), name


# ---- which implementation runs ---------------------------------------------------------------

UNSUITED = [
    (100, F32, "it takes features of 32, 64, 128 in torch.bfloat16; .*; 32, 64 in torch.float32, "),
    (128, F32, "got 128 in torch.float32; take 'composite'"),
    (256, BF16, "got 256 in torch.bfloat16; take 'composite'"),
]


@pytest.mark.parametrize(("d", "dtype", "message"), UNSUITED)
def test_a_kernel_that_was_named_and_cannot_run_says_what_it_takes(
    d: int, dtype: torch.dtype, message: str
) -> None:
    cell = make(6, d, dtype)
    by_name = f"^linear_cell_forward: implementation 'triton' cannot run: .*{message}"
    with pytest.raises(ValueError, match=by_name):
        run(cell, implementation="triton")
    with pytest.raises(ValueError, match=by_name):
        torch.ops.revdeq_triton.linear_cell_forward(*cell.tensors, *cell.numbers)
    with rk.backend("triton"), pytest.raises(ValueError, match=by_name):
        run(cell)


def test_the_backend_names_the_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = make(6, 32, F32)
    w = cell.w
    assert cell_choice.choose(None, w) == "composite"
    monkeypatch.setattr(cell_choice, "fastest", lambda w: "triton")
    assert cell_choice.choose("composite", w) == "composite"
    assert cell_choice.choose(None, w) == "triton"
    monkeypatch.setattr(cell_choice, "fastest", lambda w: None)
    with rk.backend("triton"):
        assert cell_choice.choose(None, w) == "triton"
        assert cell_choice.choose("composite", w) == "composite"


# ---- the first use of a kernel on a device ---------------------------------------------------


def test_the_trial_accepts_the_kernel_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    cases = [
        (F32, 32, "tanh", "float32", False),
        (BF16, 32, "silu", "exact", True),
        (F16, 64, "gelu", "exact", False),
    ]
    launcher = cell_launch.Launcher(kernels)
    for case in cases:
        assert launcher.differs(cpu, *case) == ""
    back = launcher.backward

    def a_little_off(*args: Any) -> Any:
        out = back(*args)
        return out._replace(grad_w=out.grad_w * 1.04)

    def lost(*args: Any) -> Any:
        return back(*args)._replace(lost=torch.ones(1, dtype=torch.int32))

    for wrong, message in ((a_little_off, "results are 0.04 off"), (lost, "1 rows did not come")):
        monkeypatch.setattr(launcher, "backward", wrong)
        assert message in launcher.differs(cpu, *cases[1])


def test_a_trial_is_made_once_for_a_kind_of_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = {"tanh": "", "relu": "it differs"}
    tried: list[str] = []

    class Launcher:
        @staticmethod
        def differs(device: Any, dtype: Any, d: int, act: str, state: str, halting: bool) -> str:
            tried.append(act)
            return outcomes[act]

    class OnCuda:
        device, dtype, shape = torch.device("cuda", 0), F32, (32, 32)

    w: Any = OnCuda()
    monkeypatch.setattr(cell_choice, "launcher", lambda implementation: Launcher)
    monkeypatch.setattr(cell_choice, "_tried", set())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="call it once before the capture"):
        cell_choice.try_first("triton", w, "tanh", "exact", False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for _ in range(2):
        cell_choice.try_first("triton", w, "tanh", "exact", False)
        with pytest.raises(RuntimeError, match="'triton' must not be used on cuda:0: it differs"):
            cell_choice.try_first("triton", w, "relu", "exact", False)
    assert tried == ["tanh", "relu", "relu"]
    cell_choice.try_first("triton", w, "tanh", "exact", True)
    cell_choice.try_first("gluon", w, "tanh", "exact", False)
    assert tried == ["tanh", "relu", "relu", "tanh", "tanh"]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    cell_choice.try_first("triton", w, "tanh", "exact", False)


# ---- ahead of time ---------------------------------------------------------------------------


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
    assert cell_launch.ACTS.keys() == set(cell_checks.ACTS)


@pytest.mark.parametrize(
    ("architecture", "d", "taken"),
    [("sm_80", 64, True), ("sm_80", 128, False), ("sm_90", 128, True), ("sm_120", 32, False)],
)
def test_a_gpu_that_does_not_hold_the_kernels_is_refused(
    architecture: str, d: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_use, "architecture", lambda device: architecture)
    monkeypatch.setattr(backends, "why_not", lambda name, device: None)
    w = SimpleNamespace(shape=(d, d), dtype=BF16, device=torch.device("cuda", 0))
    reason = cell_choice.why_not("triton", w)  # type: ignore[arg-type]
    assert (reason is None) == taken
    if reason is not None:
        assert "it takes GPUs of sm_80 up to 64 features" in reason and "'composite'" in reason


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
            forms = ((0.5, "float32"), (0.5, "exact"), (0.95123, "exact"))
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
