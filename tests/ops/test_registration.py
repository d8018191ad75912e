"""Registration of the ops with torch: schemas, fake kernels, versions, gradients."""

from __future__ import annotations

import gc
import re
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import revdeq_kernels as rk
from revdeq_kernels.core.op import OPS as KNOWN
from revdeq_kernels.core.registration import register_fake
from tests.conftest import BACKENDS, in_a_thread
from tests.ops.arguments import (
    NAMESPACES,
    OVERLOADS,
    STEPS,
    Memory,
    as_called,
    call,
    copies,
    good_arguments,
    overload_of,
    tensors,
    with_tensors,
    written_by,
)
from tests.tolerances import invert_error, update_error

ROUTES = [(backend, None) for backend in BACKENDS] + [(b, NAMESPACES[b]) for b in BACKENDS]
"""(backend, namespace): the public function on each backend, and torch.ops of each."""

FEW = ("update_", "update_exact_", "invert_y_adjoint_z_", "quantize", "residual", "update_.list")
"""What stands for all ops on Triton: it is called as the reference is, and slow to interpret."""


def on_routes(*cases: Any) -> pytest.MarkDecorator:
    """A test for each case (an op, or an op and a name) on each of ROUTES."""
    names = "op" if isinstance(cases[0], str) else "op,name"
    rows = [
        (*((case,) if isinstance(case, str) else case), *route)
        for case in cases
        for route in ROUTES
        if route[0] != "triton" or (case if isinstance(case, str) else case[0]) in FEW
    ]
    return pytest.mark.parametrize(f"{names},backend,namespace".split(","), rows)


every_call = on_routes(*OVERLOADS)


def follow(backend: str, namespace: str | None, op: str, arguments: dict[str, Any]) -> Any:
    """Call the op by one of ROUTES."""
    with rk.backend(backend):
        return call(op, arguments, namespace)


# ---- torch.library.opcheck -------------------------------------------------------------------

OPCHECKS: list[dict[str, Any]] = [
    {"optional": False},
    {"optional": True},
    {"state": torch.float64, "f": torch.float64, "cast": torch.float32, "beta": 1.3},
    {"state": torch.float16, "f": torch.float16, "cast": torch.float32, "shape": (33,)},
    {"state": torch.bfloat16, "shape": (0, 3)},
    {"f": torch.float32, "cast": torch.float32, "shape": ()},
]


@pytest.mark.parametrize(
    ("op", "namespace", "options"),
    [
        pytest.param(op, NAMESPACES[b], options, id=f"{op}-{b}-{options}")
        for op in OVERLOADS
        for b in BACKENDS
        if b != "triton" or op in FEW
        for options in (OPCHECKS if op in STEPS else OPCHECKS[1:5:3])
    ],
)
def test_opcheck(op: str, namespace: str, options: dict[str, Any]) -> None:
    name = op.partition(".")[0]
    if ("exact" in name or name == "quantize") and options.get("f") == torch.float64:
        options = options | {"f": torch.float32}
    arguments = good_arguments(op, **options)
    overload = overload_of(op, namespace)
    torch.library.opcheck(overload, *as_called(op, arguments))


def test_python_backends_have_the_schemas_of_the_compiled_ops() -> None:
    for op in OVERLOADS:
        schemas = {
            str(overload_of(op, namespace)._schema).partition("::")[2]
            for namespace in NAMESPACES.values()
        }
        assert len(schemas) == 1


def test_lists_stand_for_all_tensors_but_the_flag() -> None:
    """The schemas on lists are derived (csrc/register.h), where no other is given."""
    for op, schema in {
        "update_.list": "Tensor(a!)[] state, Tensor[] f, float beta, *, "
        "Tensor(b!)[]? cast=None) -> ()",
        "update_exact_.list": "Tensor(a!)[] state, Tensor(b!)[] digits, Tensor(c!) flag, "
        "Tensor[] f, float beta, int frac_bits, int tie, *, Tensor(d!)[]? cast=None) -> ()",
        "quantize.list": "Tensor[] x, int frac_bits, Tensor(a!)[] out, *, "
        "Tensor(b!)? flag=None) -> ()",
        "dequantize.list": "Tensor[] state, int frac_bits, ScalarType dtype) -> Tensor[]",
        "residual.list": "Tensor[] z, Tensor[] f) -> Tensor",
    }.items():
        assert str(overload_of(op)._schema) == f"revdeq::{op}({schema}"


def test_ops_describe_themselves_as_their_schemas_do() -> None:
    """Every op, its arguments in their order, what is written, and what lists have one for all."""
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("revdeq::")]
    assert {n.partition("::")[2] for n in names if "linear_cell" not in n} == KNOWN.keys()
    for label, op in KNOWN.items():
        schema = overload_of(label)._schema
        for argument, declared in zip(op.arguments, schema.arguments, strict=True):
            kind = str(declared.type).removeprefix("Optional[").removesuffix("]")
            of_a_list = kind.startswith("List[")
            written = declared.alias_info is not None and declared.alias_info.is_write
            assert argument.name == declared.name
            assert argument.written == written, (label, argument)
            assert argument.optional == declared.kwarg_only, (label, argument)
            assert of_a_list == (op.overload_name == "list" and not argument.shared)
            assert argument.is_tensor == ("Tensor" in kind), (label, argument)
        assert (op.result is not None) == bool(schema.returns), label


# ---- tensors without data --------------------------------------------------------------------

LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(0, 2).contiguous().transpose(0, 2),
    "channels last": lambda t: t[:, :, None].contiguous(memory_format=torch.channels_last),
    "with gaps": lambda t: t[:, ::2],
    "expanded": lambda t: t[:1].expand(4, *t.shape[1:]),
    "empty": lambda t: t[:, :0],
}


@pytest.mark.parametrize("route", ["fake", "meta"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", ["quantize", "dequantize"])
def test_results_without_data_look_like_real_ones(op: str, layout: str, route: str) -> None:
    name = "x" if op == "quantize" else "state"
    arguments = good_arguments(op, (2, 3, 4))
    arguments[name] = LAYOUTS[layout](arguments[name])
    for namespace in (None, *(NAMESPACES[b] for b in BACKENDS)):
        real = call(op, arguments, namespace)
        ghost = call(op, without_data(arguments, route), namespace)
        assert ghost.dtype == real.dtype
        assert ghost.shape == real.shape
        if real.numel() > 0:  # torch.empty_like itself gives empty meta tensors other strides
            assert ghost.stride() == real.stride()
        assert ghost.device.type == ("cpu" if route == "fake" else "meta")


def without_data(arguments: dict[str, Any], kind: str) -> dict[str, Any]:
    mode = FakeTensorMode()
    change = mode.from_tensor if kind == "fake" else (lambda t: t.to("meta"))
    return with_tensors(arguments, lambda _, t: change(t))


@pytest.mark.parametrize("kind", ["fake", "meta"])
@pytest.mark.parametrize("op", STEPS)
def test_tensors_without_data_are_checked_and_taken(op: str, kind: str) -> None:
    ghosts = without_data(good_arguments(op), kind)
    assert call(op, ghosts) is ghosts["state"]
    for namespace in (NAMESPACES[b] for b in BACKENDS):
        assert call(op, ghosts, namespace) is None
        with pytest.raises(ValueError, match=f"^{op}: f: expected shape"):
            call(op, ghosts | {"f": ghosts["f"][:1]}, namespace)
    with pytest.raises(ValueError, match=f"^{op}: beta: expected a number inside"):
        call(op, ghosts | {"beta": 2.0})


# ---- versions --------------------------------------------------------------------------------


@every_call
def test_versions_count_what_is_written(op: str, backend: str, namespace: str | None) -> None:
    arguments = good_arguments(op)
    for optional in (True, False):
        if not optional:
            arguments = good_arguments(op, optional=False)
        before = {name: t._version for name, t in tensors(arguments).items()}
        follow(backend, namespace, op, arguments)
        counted = {name for name, t in tensors(arguments).items() if t._version > before[name]}
        assert counted == written_by(op, arguments)


@on_routes(
    *((op, name) for op in OVERLOADS for name in sorted(written_by(op, good_arguments(op)))[:4])
)
def test_backward_refuses_what_was_overwritten(
    op: str, name: str, backend: str, namespace: str | None
) -> None:
    """Without version counters, backward would use the new values instead of the saved ones."""
    arguments = good_arguments(op)
    factor = torch.ones((), requires_grad=True)
    product = (factor * tensors(arguments)[name]).sum()  # saves the argument
    with torch.no_grad():
        follow(backend, namespace, op, arguments)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


# ---- gradients -------------------------------------------------------------------------------

DIFFERENTIABLE = [
    (op, name)
    for op in OVERLOADS
    for name, t in tensors(good_arguments(op)).items()
    if t.is_floating_point() and not name.endswith(("[0]", "[1]"))  # of lists, the last leaf
]


def with_grad(arguments: dict[str, Any], name: str, leaf: bool) -> dict[str, Any]:
    """The arguments, one of which requires grad, as a leaf of autograd's graph or not."""
    chosen = tensors(arguments)[name].requires_grad_()
    return with_tensors(arguments, lambda _, t: t * 1 if t is chosen and not leaf else t)


@on_routes(*DIFFERENTIABLE)
def test_arguments_that_require_grad_are_refused(
    op: str, name: str, backend: str, namespace: str | None
) -> None:
    for leaf in (True, False):
        arguments = good_arguments(op)
        arguments = with_grad(arguments, name, leaf)
        memory = Memory(arguments)
        with pytest.raises(RuntimeError, match="requires grad") as caught:
            follow(backend, namespace, op, arguments)
        assert str(caught.value).startswith(f"{op.partition('.')[0]}: an argument requires grad")
        assert "torch.no_grad()" in str(caught.value)
        assert str(caught.value).endswith(KNOWN[op].instead)
        memory.assert_untouched()


@on_routes(*DIFFERENTIABLE)
def test_arguments_that_require_grad_are_taken_without_grad_mode(
    op: str, name: str, backend: str, namespace: str | None
) -> None:
    arguments = good_arguments(op)
    plain = copies(arguments)
    lead = next(iter(arguments.values()))
    arguments = with_grad(arguments, name, leaf=True)
    with torch.no_grad():
        result = follow(backend, namespace, op, arguments)
    follow(backend, namespace, op, plain)
    given = list(arguments.values())
    assert any(result is a for a in [None, lead, *given]) or not any(
        t.requires_grad for t in tensors({"result": result}).values()
    )
    for name_, t in tensors(arguments).items():
        assert torch.equal(t, tensors(plain)[name_])


def test_what_the_message_recommends_is_the_op() -> None:
    """It computes the same, to the rounding of float64."""
    arguments = good_arguments("update_", state=torch.float64, f=torch.float64, optional=False)
    state, f, beta = arguments["state"], arguments["f"], arguments["beta"]
    magnitude = float(torch.maximum(state.abs(), f.abs()).max())
    for op, error in (("update_", update_error), ("invert_", invert_error)):
        recommended = eval(KNOWN[op].instead, {"torch": torch}, arguments)
        off = (call(op, arguments | {"state": state.clone()}) - recommended).abs().max()
        assert off <= 2 * error(torch.float64, beta, magnitude)  # both round


@every_call
def test_inference_mode(op: str, backend: str, namespace: str | None) -> None:
    """Inference tensors have no versions; normal tensors keep theirs in inference mode too."""
    arguments, plain = good_arguments(op), good_arguments(op)
    follow(backend, namespace, op, plain)
    with torch.inference_mode():
        follow(backend, namespace, op, copies(arguments))
        inference = copies(good_arguments(op))
        assert all(t.is_inference() for t in tensors(inference).values())
        follow(backend, namespace, op, inference)
        before = {name: t._version for name, t in tensors(arguments).items()}
        follow(backend, namespace, op, arguments)
    for name, t in tensors(arguments).items():
        assert torch.equal(t, tensors(plain)[name])
        assert torch.equal(tensors(inference)[name], tensors(plain)[name])
        assert (t._version > before[name]) == (name in written_by(op, arguments))


@pytest.mark.parametrize("namespace", [None, "revdeq"])
@pytest.mark.parametrize("op", ["update_", "update_.list"])
def test_a_refused_call_leaves_autograd_on(op: str, namespace: str | None) -> None:
    """torch fails to print a tensor of bits; what it held then once turned autograd off."""
    bits8 = torch.zeros(1, dtype=torch.uint8).view(torch.bits8)
    state = torch.zeros(1) if op == "update_" else [torch.zeros(1)]
    cast: Any = (bits8,) if op == "update_" else [bits8]

    def refused() -> None:
        with pytest.raises((TypeError, RuntimeError)):
            call(op, {"state": state, "f": state, "beta": 0.5, "cast": cast}, namespace)
        gc.collect()
        assert (torch.ones(1, requires_grad=True) * 2).requires_grad
        if namespace is None:  # torch.ops by itself leaves a thread without them
            assert torch.func.vmap(torch.func.jacrev(torch.sin))(torch.ones(2, 3)).shape == (
                2,
                3,
                3,
            )

    in_a_thread(refused)


@pytest.mark.parametrize("registry", ["torch's", "none"])
def test_a_fake_is_registered_with_and_without_torchs_registry(
    registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry is private to torch; without it the public function is called."""
    if registry == "none":
        monkeypatch.delattr("torch._library.simple_registry.singleton")
        monkeypatch.setattr(torch.library, "register_fake", called := Mock())
    library = torch.library.Library("revdeq_test", "FRAGMENT")
    name = f"fake_{'with' if registry != 'none' else 'without'}"
    library.define(f"{name}(Tensor x) -> Tensor")
    register_fake(f"revdeq_test::{name}", torch.empty_like, library)
    if registry == "none":
        called.assert_called_once_with(f"revdeq_test::{name}", torch.empty_like, lib=library)
        return
    with FakeTensorMode():
        assert getattr(torch.ops.revdeq_test, name)(torch.zeros(2, 3)).shape == (2, 3)


def test_messages_for_a_missing_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile of the ops needs their schemas, which the extension brings."""
    from revdeq_kernels.core import backends

    monkeypatch.setitem(backends._missing, "cpu", "it was not built")
    for known in ("namespaces", "overloads"):
        monkeypatch.setattr(KNOWN["update_"], known, {})
    message = re.escape("torch.ops.revdeq.update_ is not registered: it was not built")
    with pytest.raises(RuntimeError, match=message):
        KNOWN["update_"].overload("reference")
