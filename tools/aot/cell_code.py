"""Checks of the equilibrium cell's compiled kernels, on the text of their IR and machine code.

W must be loaded outside of all loops. Gluon must multiply with the warpgroup instructions, or in
float32 with TF32 instructions; its layouts are part of the source and the same in both passes.
Triton chooses layouts itself, so every evaluation of f, in both passes, is checked to use the same
products: with sums in another order, an exact state would not be reconstructed.
"""

from __future__ import annotations

import re

INPUTS = r"(%inputs[\w.]*): !tt.ptr"
"""The pointers of ``arguments.Inputs`` in a kernel's parameters: u, w and z0."""

EVALUATION = "x"
"""The name of the product of f in ``device/cell.evaluate``, which the compiler keeps."""


def problem(label: str, ir: str, code: str) -> str:
    """What is wrong with a kernel on an NVIDIA GPU; empty if nothing.

    `ir` is Triton's intermediate representation, with layouts; `code` is machine code.
    """
    inputs = re.findall(INPUTS, ir)
    found = depths_of_loads(ir, inputs[1]) if inputs else []
    if not found or max(found) > 0:
        return f"loads W at loop depths {found}, expected outside of loops"
    if label.startswith("gluon"):
        instruction = "TF32" if " fp32 " in label else "HGMMA"
        return "" if instruction in code else f"no {instruction} in its machine code"
    products = evaluations(ir)
    first, second = products[: len(products) // 2], products[len(products) // 2 :]
    if not products or first != second:
        return f"evaluates f at z by {first}, at y by {second}, expected the same products"
    return ""


def depths_of_loads(ir: str, pointer: str) -> list[int]:
    """The loop depth of each load through a pointer, in Triton's intermediate representation."""
    from_pointer, depths, loops = {pointer}, [], []
    for line in ir.splitlines():
        code = line.split(" loc(")[0]
        operands = set(re.findall(r"%[\w.-]+", code.partition("=")[2]))
        if match := re.search(r"(%[\w.-]+) = tt\.(addptr|splat|broadcast|load)\b", code):
            if operands & from_pointer and match[2] == "load":
                depths.append(sum(loops))
            elif operands & from_pointer:
                from_pointer.add(match[1])
        if code.rstrip().endswith("{"):
            loops.append("scf.for" in code or "scf.while" in code)
        elif code.strip().startswith("}") and loops and not code.rstrip().endswith("{"):
            loops.pop()
    return depths


def evaluations(ir: str) -> list[str]:
    """The products that evaluate f: what each is added to, and its types with their layouts.

    A layout determines the order of summation: by its instruction, and by kWidth, the number of
    adjacent elements.
    """
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", ir, re.MULTILINE))
    product = rf"%{EVALUATION}(?:_\d+)? = [\w.]*dot [^:]*?%(\w+)(?:, inputPrecision[^:]*)? : (.*)"
    found = []
    for added_to, types in re.findall(product, re.sub(r" loc\(.*", "", ir)):
        known = re.sub(r"#\w+", lambda name: layouts.get(name[0], name[0]), types)
        found.append(f"{'0' if added_to.startswith('cst') else 'sum'} + {known}")
    return found
