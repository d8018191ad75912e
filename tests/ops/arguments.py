"""Valid arguments for every op, by name; ways to call an op; and checks of a call's writes.

The name of an op may be that of an overload, "update_.list" or "update_.channels", whose arguments
are lists, or include a tensor of betas.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import revdeq_kernels as rk
from revdeq_kernels.core import roles
from revdeq_kernels.core.op import OPS as KNOWN
from tests.conftest import random_state

FLOAT_OPS = ("update_", "invert_")
EXACT_OPS = ("update_exact_", "invert_exact_")
STEPS = FLOAT_OPS + EXACT_OPS
FLOAT_PASSES = ("invert_z_adjoint_y_", "invert_y_adjoint_z_", "invert_y_adjoint_z0_")
EXACT_PASSES = tuple(op.removesuffix("_") + "_exact_" for op in FLOAT_PASSES)
PASSES = FLOAT_PASSES + EXACT_PASSES
OPS = tuple(op for op in KNOWN if "." not in op)
LISTS = tuple(f"{op}.list" for op in OPS)
CHANNELS = tuple(f"{op}.channels" for op in FLOAT_OPS)
OVERLOADS = OPS + LISTS + CHANNELS

CHANNEL_PLACES = [
    ((), (1,)),
    ((7,), (7,)),
    ((5, 7), (7,)),
    ((5, 7), (5, 1)),
    ((2, 3, 5, 7), (3, 1, 1)),
    ((2, 3, 5, 7), (1, 3, 1, 1)),
    ((2, 3, 5, 7), (2, 1, 1, 1)),
    ((4, 3, 50, 40), (3, 1, 1)),  # more neighbors in a channel than a vector has lanes
    ((3, 1000), (1000,)),
    ((1, 1), (1, 1)),
    ((0, 3), (3,)),
    ((3, 2), (1, 1)),
]
"""(shape of the state, shape of beta)."""

NAMESPACES = {"cpu": "revdeq", "triton": "revdeq_triton", "reference": "revdeq_reference"}
"""The namespace in torch.ops of each backend's ops; `revdeq` is also that of "cuda"."""


def state_of(op: str) -> str:
    """The name of the state that a pass reconstructs."""
    return "z" if "invert_z" in op else "y"


def grad_of(op: str) -> str:
    """The name of the gradient that a pass carries."""
    return "grad_y" if "invert_z" in op else "grad_z"


def lead_of(op: str) -> str:
    """The argument that selects the backend, and to which the others are compared."""
    return next(iter(tensors(good_arguments(op)))).partition("[")[0]


def owner_of(op: str, name: str) -> str:
    """The argument whose device and shape the argument `name` must have."""
    name = name.partition("[")[0]
    if op.partition(".")[0] in PASSES:
        if name == grad_of(op):
            return "f"
        if name in ("vjp", "seed", "grad_y"):
            return grad_of(op)
    return lead_of(op)


WRITTEN = {op: {a.name for a in KNOWN[op].arguments if a.written} for op in OVERLOADS}
"""The arguments that each op writes; test_registration.py compares them to the schemas."""


def good_arguments(op: str, shape: tuple[int, ...] = (5, 7), **options: Any) -> dict[str, Any]:
    """Arguments of `op` on the CPU; see ``arguments_of_leaf`` for the options.

    For lists, three leaves: with the shape, with one element, and with the shape again.
    """
    if op.endswith(".list"):
        shapes = (shape, (1,), shape)
        leaves = [arguments_of_leaf(op, s, seed=10 * k, **options) for k, s in enumerate(shapes)]
        return lists_of(op, leaves)
    return arguments_of_leaf(op, shape, **options)


def lists_of(op: str, leaves: list[dict[str, Any]]) -> dict[str, Any]:
    """One call on lists from the arguments of several calls; shared arguments are the first's."""
    shared = {a.name for a in KNOWN[op].arguments if a.shared}
    return {n: v if n in shared else [leaf[n] for leaf in leaves] for n, v in leaves[0].items()}


def arguments_of_leaf(
    op: str,
    shape: tuple[int, ...],
    *,
    state: torch.dtype = torch.float32,
    f: torch.dtype = torch.bfloat16,
    cast: torch.dtype | None = torch.bfloat16,
    vjp: torch.dtype | None = None,
    beta: float = 0.8,
    frac_bits: int = 16,
    tie: int = 1,
    optional: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments of an op on one leaf, with cast (or the flag of quantize) if `optional` is true.

    `f` is also the dtype of quantize's x and of dequantize's result; `vjp` defaults to f's dtype.
    """
    arguments = KNOWN[op].arguments
    exact = not {"digits", "frac_bits"}.isdisjoint(a.name for a in arguments)
    grad = roles.wide(f)
    numbers = {roles.BETA: 0.6, roles.EXACT_BETA: 0.6, roles.FACTOR: 1 - beta, roles.DTYPE: f}
    numbers |= {roles.FRAC_BITS: frac_bits, roles.TIE: tie}
    dtypes = {"x": f, "f": f, "out": torch.int32, "seed": f, "vjp": vjp or f, "cast": cast}
    dtypes |= dict.fromkeys(("grad", "grad_y", "grad_z"), grad)
    dtypes |= dict.fromkeys(("state", "z", "y"), torch.int32 if exact else state)
    good: dict[str, Any] = {}
    for k, a in enumerate(arguments):
        if a.optional and (not optional or (a.name == "cast" and cast is None)):
            continue
        if not a.is_tensor:
            good[a.name] = beta if a.name == "beta" else numbers[a.role]
        elif a.role == roles.FLAG:
            good[a.name] = torch.zeros(1, dtype=torch.int32)
        elif a.role == roles.BETAS:
            channels = shape[-1] if shape else 1
            good[a.name] = torch.linspace(0.2, 0.9, channels, dtype=roles.wide(state))
        elif a.role == roles.DIGITS:
            size = (rk.digit_bytes(math.prod(shape), beta),)
            generator = torch.Generator().manual_seed(seed + k)
            good[a.name] = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        else:
            good[a.name] = random_state(shape, dtypes[a.name], seed + k)
    return good


def channel_arguments(
    op: str, shape: tuple[int, ...], beta: tuple[int, ...], **options: Any
) -> dict[str, Any]:
    """Arguments with these shapes for an op whose beta is a tensor."""
    arguments = good_arguments(op, shape, **options)
    real = torch.float64 if arguments["state"].dtype == torch.float64 else torch.float32
    values = torch.rand(beta, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return arguments | {"beta": (0.1 + 0.8 * values).to(real)}


def call(op: str, arguments: dict[str, Any], namespace: str | None = None) -> Any:
    """Call the public function, or torch.ops.<namespace>.<op>."""
    name = op.partition(".")[0]
    if namespace is None:
        if op == "quantize.list":  # the public function allocates its results itself
            given = {n: a for n, a in arguments.items() if n != "out"}
            for out, state in zip(arguments["out"], rk.quantize(**given), strict=True):
                out.copy_(state)
            return None
        return getattr(rk, name)(**arguments)
    return getattr(getattr(torch.ops, namespace), name)(**arguments)


def overload_of(op: str, namespace: str = "revdeq") -> Any:
    """The overload in torch.ops with the op's name."""
    name, _, overload = op.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload or "default")


def as_called(op: str, arguments: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments in the form of the op's schema: positional and keyword."""
    schema = overload_of(op)._schema.arguments
    positional = tuple(arguments[a.name] for a in schema if not a.kwarg_only)
    return positional, {
        a.name: arguments[a.name] for a in schema if a.name in arguments and a.kwarg_only
    }


def by_field(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with each named tuple replaced by its fields."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        found |= value._asdict() if hasattr(value, "_fields") else {name: value}
    return found


def tensors(arguments: dict[str, Any]) -> dict[str, Tensor]:
    """The tensor arguments; those in lists are named "state[0]", "state[1]", ..."""
    found: dict[str, Tensor] = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, (list, tuple)):
            found |= {f"{name}[{k}]": t for k, t in enumerate(value) if isinstance(t, Tensor)}
    return found


def with_tensors(arguments: dict[str, Any], change: Callable[[str, Tensor], Any]) -> dict[str, Any]:
    """The same arguments, with every tensor replaced by `change(name, tensor)`."""
    changed: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            changed[name] = change(name, value)
        elif isinstance(value, (list, tuple)):
            changed[name] = [change(name, t) for t in value]
        else:
            changed[name] = value
    return changed


def written_by(op: str, arguments: dict[str, Any]) -> set[str]:
    """The names in ``tensors(arguments)`` that the op writes."""
    return {name for name in tensors(arguments) if name.partition("[")[0] in WRITTEN[op]}


def copies(arguments: dict[str, Any]) -> dict[str, Any]:
    """A copy of the arguments in separate memory."""
    return with_tensors(arguments, lambda _, t: t.clone())


def outcome(arguments: dict[str, Any], result: Any) -> dict[str, Tensor]:
    """Everything that a call may change: its tensors, and its result if it is not one of them."""
    in_place = any(result is value for value in arguments.values())
    return tensors(arguments) | ({} if in_place else tensors({"result": result}))


def expected(op: str, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """The outcome according to the reference; the arguments are not changed."""
    mine = copies(arguments)
    with rk.backend("reference"):
        return outcome(mine, call(op, mine))


def bits(t: Tensor) -> Tensor:
    """The elements as integers, on the CPU; every NaN becomes the same integer."""
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
    """A snapshot of the memory of some tensors, including gaps, and of their versions."""

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


def refusal(op: str, arguments: dict[str, Any], backend: str, kind: type[Exception]) -> str:
    """The message of the error that the public function raises for the arguments."""
    with rk.backend(backend), pytest.raises(kind) as caught:
        call(op, arguments)
    assert type(caught.value) is kind
    return str(caught.value)


def assert_compiled_op_refuses(op: str, arguments: dict[str, Any], message: str) -> None:
    """torch.ops.revdeq raises `message`, and the kernel below names the same op and argument."""
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        call(op, arguments, "revdeq")
    named = message.partition(" expected ")[0]
    assert refusal_of_kernel(op, arguments).startswith(f"{named} ")


def refusal_of_kernel(op: str, arguments: dict[str, Any]) -> str:
    """The message of the compiled op itself, without the Python checks."""
    with torch._C._AutoDispatchBelowADInplaceOrView(), pytest.raises(Exception) as caught:  # noqa: PT011
        call(op, arguments, "revdeq")
    return str(caught.value)
