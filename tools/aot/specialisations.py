"""What a Triton kernel is specialized for: the types of its parameters, constants, options.

``float_states.py`` and ``exact_states.py`` list the specializations; ``signatures.py`` explains
them.
"""

from __future__ import annotations

from typing import Any

from revdeq_kernels.dtypes import F_OF_STATE, TRITON
from revdeq_kernels.triton.device.half_step import OPTIONS, Carried, Stepped

Specialisation = tuple[str, Any, dict[str, Any], dict[str, Any]]
Types = dict[str, Any]
"""By parameter: a type, None, or a named tuple of these, which holds the tensors of all leaves."""

STATE_F = [(TRITON[state], TRITON[f]) for state, fs in F_OF_STATE.items() for f in fs]
"""The dtypes of a state and of f."""

_OF_LEAVES = {"numel", "num_bytes", "x", "out", "state", "z", "f"}
"""The other parameters with one element per leaf."""

LEAVES, MOST_LEAVES = 3, 16
NUMELS = ("i32", "i64", "1")
"""In addition to "i32:16", which applies to nearly all tensors."""

Size = str | list[str]
"""The type of a size: one for all leaves, or one per leaf."""

MIXED: tuple[list[str], ...] = (["i32", "i64", "i64"], ["i32", "i32", "i64"])
"""The sizes of leaves in one launch, some with 2^31 elements or more."""

MIXED_BYTES: tuple[list[str], ...] = (
    ["i32:16", "i32:16", "i64:16"],  # two or more digits per byte: fewer bytes than elements
    ["i64:16", "i32:16", "i64:16"],  # 2^31 - 1 elements have 2^31 bytes if each has one
)
"""Their bytes of digits: the types need not be those of the sizes."""


def words(size: Size) -> str:
    """A size in a label."""
    return size if isinstance(size, str) else ",".join(size)


def launch(
    label: str, kernel: Any, types: Types, leaves: int | None = 1, **constants: Any
) -> Specialisation:
    """The types as tuples for this many leaves; None stands for an argument that is None.

    A list gives the types of the leaves one by one.
    """

    def of_leaves(kind: Any) -> Any:
        """One type per leaf, if the parameter has a type."""
        if isinstance(kind, list):
            return tuple(kind)
        return (kind,) * leaves if leaves and kind is not None else kind

    signature: dict[str, Any] = {}
    for name, kind in types.items():
        if kind is None:
            constants[name] = None
        elif isinstance(kind, tuple):
            signature[name] = type(kind)(*map(of_leaves, kind))
        else:
            signature[name] = of_leaves(kind) if name in _OF_LEAVES else kind
    label += f" {leaves} leaves" if leaves not in (None, 1) else ""
    return label, kernel, signature, constants | OPTIONS


def casts(f: str) -> list[str | None]:
    """The possible types of `cast` of a half step."""
    return list(dict.fromkeys((None, f, "fp32")))


def pointer(kind: str | None) -> str | None:
    """A pointer to elements of this type."""
    return kind and f"*{kind}"


def step_types(state: str, f: str, cast: str | None, numel: Size) -> Types:
    """The tensors of a half step."""
    return {"stepped": Stepped(f"*{state}", f"*{f}", pointer(cast)), "numel": numel}


def step_numbers(real: str, *names: str) -> Types:
    """The types of the numbers of a step; doubles are passed as their bits."""
    return dict.fromkeys(names, "i64" if real == "fp64" else "fp32")


def real(f: str) -> str:
    """The dtype of the gradients."""
    return "fp64" if f == "fp64" else "fp32"


def carried(f: str, vjp: str, start: bool) -> Types:
    """The tensors of an adjoint; that of z_0 adds the gradient of y_0 and has no seed."""
    grad = f"*{real(f)}"
    other, seed = (grad, None) if start else (None, f"*{f}")
    return {"carried": Carried(grad, other, f"*{vjp}", seed)}
