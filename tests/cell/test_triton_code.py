"""The checks of the equilibrium cell's compiled kernels, on short excerpts."""

from __future__ import annotations

import re

import pytest

from tools.aot import cell_code

MMA = "#ttg.nvidia_mma<{versionMajor = 2, warpsPerCTA = [1, 8], instrShape = [16, 8]}>"


def product(name: str, k_width: int = 2, added_to: str = "cst_9", options: str = "") -> str:
    """A product in Triton's intermediate language."""
    factors = (
        f"tensor<{shape}xbf16, #ttg.dot_op<{{opIdx = {k}, parent = #mma, kWidth = {k_width}}}>>"
        for k, shape in enumerate(("16x64", "64x64"))
    )
    types = f"{' * '.join(factors)} -> tensor<16x64xf32, #mma>"
    return f"        %{name} = tt.dot %x_1, %w_t, %{added_to}{options} : {types} loc(#loc9)\n"


def kernel(*products: str, w_in_loop: bool = False) -> str:
    """A kernel that loads W and takes these products."""
    pointers = ", ".join(f"%inputs_{k}: !tt.ptr<bf16> {{tt.divisibility = 16}}" for k in range(3))
    load = "    %p = tt.addptr %inputs_1, %i : tensor<64x64xi32>\n"
    load += "    %w_t = tt.load %p : tensor<64x64>\n"
    loop = "    %r = scf.for %k = %c0 to %n step %c1 iter_args(%a = %b) -> (i32) : i32 {\n"
    body = loop + load if w_in_loop else load + loop
    return f"#mma = {MMA}\ntt.func @k({pointers}) {{\n{body}{''.join(products)}    }} loc(#loc2)\n"


def test_products_of_f_are_found_with_their_layouts() -> None:
    tf32 = ", inputPrecision = tf32"
    ir = kernel(product("x"), product("gy"), product("x_12", 4, "x_7", tf32), product("xy"))
    first, second = cell_code.evaluations(ir)
    assert first.startswith("0 + tensor<16x64xbf16") and first.count("kWidth = 2") == 2
    assert second.startswith("sum + ") and second.count("kWidth = 4") == 2
    assert first.count(MMA) == second.count(MMA) == 3
    wgmma = product("x").replace("tt.dot", "ttng.warp_group_dot")
    assert cell_code.evaluations(kernel(wgmma)) == [first]


@pytest.mark.parametrize(
    ("ir", "problem"),
    [
        (kernel(product("x"), product("x_3")), ""),
        (kernel(product("x"), product("x_3")).replace("%inputs_", "%inputs."), ""),  # Triton 3.9
        (kernel(product("x"), product("x_3", 4)), "evaluates f at z by .*= 2.* at y by .*= 4"),
        (kernel(product("x"), product("x_3", added_to="bias")), "evaluates f at z by "),
        (kernel(product("x")), "evaluates f at z by "),
        (kernel(), "evaluates f at z by "),
        (kernel(product("x"), product("x_3"), w_in_loop=True), "loads W at loop depths .1., "),
        ("", "loads W at loop depths .., "),
    ],
)  # fmt: skip
def test_a_kernel_with_a_fault_is_found(ir: str, problem: str) -> None:
    found = cell_code.problem("triton cell forward bf16 64", ir, "HMMA")
    assert re.match(problem, found) and bool(found) == bool(problem)


@pytest.mark.parametrize(
    ("w", "code", "problem"),
    [
        ("bf16", "HGMMA.64x64x16.F32.BF16", ""),
        ("bf16", "HMMA.16816.F32.BF16", "no HGMMA in its "),
        ("fp32", "HMMA.1688.F32.TF32", ""),
        ("fp32", "FFMA", "no TF32 in its "),
    ],
)
def test_gluon_multiplies_by_tensor_cores(w: str, code: str, problem: str) -> None:
    found = cell_code.problem(f"gluon cell forward {w} 128", kernel(), code)
    assert found.startswith(problem) and bool(found) == bool(problem)
