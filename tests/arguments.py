"""Good arguments for every op, by name; the ways to call an op; and what a call did to memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import revdeq_kernels as rk
from conftest import EXACT_F, FLOAT_PAIRS, random_state

FLOAT_OPS = ("update_", "invert_")
EXACT_OPS = ("update_exact_", "invert_exact_")
STEPS = FLOAT_OPS + EXACT_OPS
OPS = (*STEPS, "adjoint_", "quantize", "dequantize")

NAMESPACES = {"cpu": "revdeq", "triton": "revdeq_triton", "reference": "revdeq_reference"}
"""Where torch.ops holds the ops of each backend; `revdeq` serves "cuda" too."""

WRITTEN = {
    "update_": {"state", "cast"},
    "invert_": {"state", "cast"},
    "adjoint_": {"grad", "seed"},
    "update_exact_": {"state", "digits", "flag", "cast"},
    "invert_exact_": {"state", "cast"},
    "quantize": {"flag"},
    "dequantize": set(),
}
"""The arguments that each op writes."""


def good_arguments(
    op: str,
    shape: tuple[int, ...] = (5, 7),
    *,
    state: torch.dtype = torch.float32,
    f: torch.dtype = torch.bfloat16,
    cast: torch.dtype | None = torch.bfloat16,
    beta: float = 0.8,
    frac_bits: int = 16,
    tie: int = 1,
    optional: bool = True,
) -> dict[str, Any]:
    """Arguments of `op` on the CPU; the optional one (cast, or quantize's flag) where asked for.

    `f` stands for the dtype of quantize's x and of dequantize's result too.
    """
    flag = {"flag": torch.zeros(1, dtype=torch.int32)}
    if op == "quantize":
        return {"x": random_state(shape, f), "frac_bits": frac_bits} | (flag if optional else {})
    if op == "adjoint_":
        grad = torch.float64 if f == torch.float64 else torch.float32
        tensors = {"grad": random_state(shape, grad), "vjp": random_state(shape, f, seed=2)}
        tensors["seed"] = random_state(shape, f, seed=3)
        return tensors | {"scale": 1 - beta, "beta": beta}
    integers = random_state(shape, torch.int32)
    if op == "dequantize":
        return {"state": integers, "frac_bits": frac_bits, "dtype": f}
    if op in FLOAT_OPS:
        chosen: dict[str, Any] = {"state": random_state(shape, state)}
    else:
        generator = torch.Generator().manual_seed(1)
        size = (rk.digit_bytes(integers.numel(), beta),)
        digits = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        chosen = {"state": integers, "digits": digits, "frac_bits": frac_bits, "tie": tie}
        chosen |= flag if op == "update_exact_" else {}
    chosen |= {"f": random_state(shape, f, seed=2), "beta": beta}
    return chosen | ({"cast": random_state(shape, cast, seed=3)} if optional and cast else {})


def call(op: str, arguments: dict[str, Any], namespace: str | None = None) -> Any:
    """Call the public function, or torch.ops.<namespace>.<op>."""
    if namespace is None:
        return getattr(rk, op)(**arguments)
    return getattr(getattr(torch.ops, namespace), op)(**arguments)


def as_called(op: str, arguments: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments as the op's schema has them: by position, and by keyword."""
    schema = getattr(torch.ops.revdeq, op).default._schema.arguments
    positional = tuple(arguments[a.name] for a in schema if not a.kwarg_only)
    return positional, {
        a.name: arguments[a.name] for a in schema if a.name in arguments and a.kwarg_only
    }


def tensors(arguments: dict[str, Any]) -> dict[str, Tensor]:
    """The arguments that are tensors."""
    return {name: a for name, a in arguments.items() if isinstance(a, Tensor)}


def copies(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same arguments, in memory of their own."""
    return {name: a.clone() if isinstance(a, Tensor) else a for name, a in arguments.items()}


def outcome(arguments: dict[str, Any], result: Any) -> dict[str, Tensor]:
    """All that a call can have changed: its tensors and its result, which a half step has not."""
    half_step = "beta" in arguments
    return tensors(arguments) | ({} if half_step else {"result": result})


def expected(op: str, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """The outcome that the reference defines; the arguments are left alone."""
    mine = copies(arguments)
    with rk.backend("reference"):
        return outcome(mine, call(op, mine))


def bits(t: Tensor) -> Tensor:
    """The elements as integers, on the CPU; every NaN as one and the same."""
    t = t.detach().cpu().contiguous()
    if not t.is_floating_point():
        return t
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
    return t.view(integers).masked_fill(t.isnan(), -1)


def assert_same_outcome(got: dict[str, Tensor], want: dict[str, Tensor], label: object) -> None:
    """Raise AssertionError, with the first difference, unless all tensors agree bit for bit."""
    assert got.keys() == want.keys(), label
    for name, w in want.items():
        g = got[name]
        assert (g.dtype, g.shape) == (w.dtype, w.shape), f"{label}: {name}"
        wrong = bits(g) != bits(w)
        if wrong.any():
            place = tuple(wrong.nonzero()[0].tolist())
            seen, right = g.detach().cpu()[place].item(), w.detach().cpu()[place].item()
            raise AssertionError(
                f"{label}: {name}: {int(wrong.sum())} of {wrong.numel()} elements differ; "
                f"at {place} got {seen!r}, expected {right!r}"
            )


class Memory:
    """What the memory behind some tensors held, gaps included, and their versions."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.tensors = {n: t for n, t in tensors(arguments).items() if t.device.type != "meta"}
        self.before = {name: self._bytes(t).clone() for name, t in self.tensors.items()}
        self.versions = {name: t._version for name, t in self.tensors.items()}

    def assert_untouched(self) -> None:
        """Raise AssertionError if a byte or a version has changed since."""
        for name, t in self.tensors.items():
            assert torch.equal(self._bytes(t), self.before[name]), f"{name} was written"
            assert t._version == self.versions[name], f"{name} counts as written"

    @staticmethod
    def _bytes(t: Tensor) -> Tensor:
        return torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage())


def float_cases() -> list[tuple[torch.dtype, torch.dtype, torch.dtype | None]]:
    """(state, f, cast) for every combination that the float ops take."""
    return [(s, f, cast) for s, f in FLOAT_PAIRS for cast in casts(f)]


def exact_cases() -> list[tuple[torch.dtype, torch.dtype | None]]:
    """(f, cast) for every combination that the exact ops take."""
    return [(f, cast) for f in EXACT_F for cast in casts(f)]


def casts(f: torch.dtype) -> list[torch.dtype | None]:
    """The dtypes that `cast` may have beside f; None for no cast."""
    return list(dict.fromkeys([None, f, torch.float32]))


def refusal(op: str, arguments: dict[str, Any], backend: str, kind: type[Exception]) -> str:
    """The message with which the public function refuses the arguments."""
    with rk.backend(backend), pytest.raises(kind) as caught:
        call(op, arguments)
    assert type(caught.value) is kind
    return str(caught.value)
