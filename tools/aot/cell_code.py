"""What is checked of the equilibrium cell's compiled kernels, in their languages: text is enough.

W is loaded outside of every loop. Gluon multiplies by the warpgroup instructions, or in float32 by
those of TF32; its layouts are written in its source, the same for both ways. Triton chooses them: a
kernel has to evaluate f by the same products wherever it does, forward and back, as an exact state
would not come back from sums in another order.
"""

from __future__ import annotations

import re

INPUTS = r"(%inputs[\w.]*): !tt.ptr"
"""The pointers of ``arguments.Inputs`` in a kernel's parameters: u, w and z0."""

EVALUATION = "x"
"""What ``device/cell.evaluate`` calls the product of f; the compiler keeps the name."""


def problem(label: str, ir: str, code: str) -> str:
    """What a kernel does that it must not do on an NVIDIA GPU, or nothing.

    `ir` is Triton's intermediate language, with layouts; `code` is machine code.
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
    """How many loops are around each load by a pointer, in Triton's intermediate language."""
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
    """The products by which f is evaluated: what each adds to, and its types with their layouts.

    A layout says in which order a product is summed: its instruction, and kWidth, which numbers lie
    side by side.
    """
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", ir, re.MULTILINE))
    product = rf"%{EVALUATION}(?:_\d+)? = [\w.]*dot [^:]*?%(\w+)(?:, inputPrecision[^:]*)? : (.*)"
    found = []
    for added_to, types in re.findall(product, re.sub(r" loc\(.*", "", ir)):
        known = re.sub(r"#\w+", lambda name: layouts.get(name[0], name[0]), types)
        found.append(f"{'0' if added_to.startswith('cst') else 'sum'} + {known}")
    return found
