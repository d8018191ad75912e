"""Arguments that are not numbers, or not tensors, raise errors that name them: no conversions."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import BACKENDS
from tests.ops.arguments import OPS, Memory, good_arguments, refusal, tensors


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("op", "name", "value", "expected"),
    [
        ("update_", "beta", "0.5", "a Python number, got str"),
        ("update_exact_", "beta", torch.tensor(0.5), "a Python number, got Tensor"),
        ("invert_z_adjoint_y_", "beta", torch.tensor(0.5), "a Python number, got Tensor"),
        ("invert_y_adjoint_z_", "next_beta", torch.tensor(0.5), "a Python number, got Tensor"),
        ("adjoint_", "scale", torch.tensor(0.5), "a Python number, got Tensor"),
        ("update_exact_", "beta", "0.5", "a Python number, got str"),
        ("update_exact_", "tie", 0.0, "a Python integer, got float"),
        ("quantize", "frac_bits", 16.5, "a Python integer, got float"),
    ],
)
def test_what_is_no_python_number_is_refused(
    op: str, name: str, value: object, expected: str, backend: str
) -> None:
    """torch refuses or converts what its schemas do not say; the Python backends do not guess."""
    arguments = good_arguments(op) | {name: value}
    memory = Memory(arguments)
    assert f"{op}: {name}: expected {expected}; " in refusal(op, arguments, backend, TypeError)
    memory.assert_untouched()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("op", OPS)
def test_what_is_no_strided_tensor_is_refused(op: str, grad_mode: bool, backend: str) -> None:
    """None, an array, or a sparse tensor: by name, in either grad mode."""
    good = good_arguments(op)
    for name, tensor in tensors(good).items():
        for value in (tensor.double().numpy(), tensor.to_sparse()):
            wanted = "a strided tensor" if isinstance(value, torch.Tensor) else "a tensor"
            with torch.set_grad_enabled(grad_mode):
                message = refusal(op, good | {name: value}, backend, TypeError)
            assert message.startswith(f"{op}: {name}: expected {wanted}, got ")
