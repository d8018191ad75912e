"""What ``solve`` refuses, in words that name the argument and the way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_revdeq import solve

F32 = torch.float32
Z0 = torch.zeros(3, 4)


def half(z: Tensor) -> Tensor:
    return 0.5 * z


OF_F: list[tuple[type[Exception], str, Any, Any]] = [
    (ValueError, r"f: expected .*shape of z0, \(3, 4\), got \(3, 1\)", lambda z: z[:, :1], Z0),
    (TypeError, "f: expected .*got NoneType", lambda z: None, Z0),
    (ValueError, "f: expected .*device of z0, cpu, got meta", lambda z: z.to("meta"), Z0),
    (TypeError, r"f: expected .*structure of z0, \[\*\], got \*; return", lambda z: z[0], [Z0]),
    (
        TypeError,
        r"f: expected .*structure of z0, {'a': \*, 'b': \[\*, \(\*, \*\)\]}, got \(\*,\); return",
        lambda z: (z["a"],),
        {"a": Z0, "b": [Z0, (Z0, Z0)]},
    ),
    (TypeError, "state: expected .*got torch.float64", lambda z: z.double(), Z0),
    (TypeError, "z0: expected floating-point", half, Z0.int()),
    (TypeError, "z0: expected floating-point", half, [Z0, "a"]),
    (TypeError, "z0: expected a tensor or a pytree", half, []),
]
OF_OPTIONS: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, r"y0: expected the structure of z0, \*, got \[\*\]; pass the", {"y0": [Z0]}),
    (ValueError, "y0: expected leaves like", {"y0": Z0.half()}),
    (ValueError, "y0: expected leaves like", {"y0": Z0[:1]}),
    (ValueError, "beta: expected one element", {"beta": torch.rand(1, 4)}),
    (ValueError, "beta: expected .*other than 1", {"beta": torch.ones(()), "state": F32}),
    (TypeError, "state: expected .*choose state=torch.float32", {"state": torch.bfloat16}),
]
"""What only f, or the tensors, say of an option: others are in ``test_options.py``."""


@pytest.mark.parametrize(
    ("error", "message", "f", "z0", "options"),
    [
        *[(*row, {}) for row in OF_F],
        *[(error, message, half, Z0, options) for error, message, options in OF_OPTIONS],
        (TypeError, "state: .*choose state=torch.float64", half, Z0.double(), {"state": "exact"}),
    ],
)
def test_errors_name_the_argument_and_the_way_out(
    error: type[Exception], message: str, f: Callable, z0: object, options: dict
) -> None:
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(error, match=message):
            solve(f, z0, **options)


def test_f_that_changes_its_dtype() -> None:
    calls: list[int] = []

    def f(z: Tensor) -> Tensor:
        calls.append(1)
        return z.half() if len(calls) == 3 else z

    with pytest.raises(ValueError, match=r"float32, as in the first evaluation.*got torch.float16"):
        solve(f, Z0)


def test_f_that_changes_its_state_in_place() -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="f: expected not to modify its state"):
        solve(lambda z: z.mul_(0.5), Z0)
    with pytest.raises(RuntimeError, match=r"f: expected not to .*; write z = z \+"):
        solve(lambda z: z.mul_(0.5), Z0)
    assert not Z0.any()
