"""What ``solve`` refuses, in words that name the argument and the way out."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from torch_revdeq import solve

Z0 = torch.zeros(3, 4)
GROUP = torch.distributed.ProcessGroup(HashStore(), 0, 1)


def half(z: Tensor) -> Tensor:
    return 0.5 * z


@pytest.mark.parametrize(
    ("error", "message", "f", "z0", "options"),
    [
        (ValueError, "beta: expected .* other than 1", half, Z0, {"beta": 1.0}),
        (ValueError, "beta: expected .*(0, 2)", half, Z0, {"beta": 2.0}),
        (ValueError, "beta: expected .*1/256.*base 1000", half, Z0, {"beta": 0.999}),
        (ValueError, "beta: expected .* in step 1", half, Z0, {"beta": [0.5, 1.0], "max_steps": 2}),
        (ValueError, "beta: expected one value for each", half, Z0, {"beta": [0.5]}),
        (TypeError, "beta: expected numbers, got str", half, Z0, {"beta": ["0.5"] * 8}),
        (TypeError, "beta: expected numbers, got Tensor", half, Z0, {"beta": [torch.ones(())] * 8}),
        (
            TypeError,
            "beta: .*floating-point",
            half,
            Z0,
            {"beta": torch.ones((), dtype=torch.int64)},
        ),
        (TypeError, "beta: expected a number.*'0.5'", half, Z0, {"beta": "0.5"}),
        (TypeError, "beta: expected a number.*None", half, Z0, {"beta": None}),
        (ValueError, "beta: expected one element", half, Z0, {"beta": torch.rand(1, 4)}),
        (
            ValueError,
            "beta: .*other than 1",
            half,
            Z0,
            {"beta": torch.ones(()), "state": torch.float32},
        ),
        (ValueError, "max_steps: expected an integer of at least 1", half, Z0, {"max_steps": 0}),
        (ValueError, "max_steps: ", half, Z0, {"max_steps": True}),
        (ValueError, "tol: expected", half, Z0, {"tol": -1.0}),
        (ValueError, "tol: expected", half, Z0, {"tol": float("nan")}),
        (ValueError, "check_every: expected", half, Z0, {"tol": 1e-3, "check_every": 0}),
        (ValueError, "process_group: expected with a tol", half, Z0, {"process_group": GROUP}),
        (ValueError, "process_group: expected a Proc", half, Z0, {"process_group": object()}),
        (ValueError, "state: expected 'auto', 'exact'", half, Z0, {"state": "fp32"}),
        (ValueError, "state: expected", half, Z0, {"state": torch.int32}),
        (
            TypeError,
            "state: .*float64; choose state=torch.float64",
            half,
            Z0.double(),
            {"state": "exact"},
        ),
        (TypeError, "state: .*got torch.float64", lambda z: z.double(), Z0, {}),
        (TypeError, "state: .*choose state=torch.float32", half, Z0, {"state": torch.bfloat16}),
        (ValueError, "frac_bits: expected 'auto' or an integer", half, Z0, {"frac_bits": 31}),
        (
            ValueError,
            "frac_bits: .*float state",
            half,
            Z0,
            {"frac_bits": 4, "state": torch.float32},
        ),
        (
            ValueError,
            "adjoint: expected one of 'auto', 'reversible'",
            half,
            Z0,
            {"adjoint": "implicit"},
        ),
        (ValueError, "rng: expected one of", half, Z0, {"rng": True}),
        (ValueError, "accumulate: expected one of", half, Z0, {"accumulate": "fp32"}),
        (TypeError, "z0: expected floating-point", half, Z0.int(), {}),
        (TypeError, "z0: expected floating-point", half, [Z0, "a"], {}),
        (TypeError, "z0: expected a tensor or a pytree", half, [], {}),
        (TypeError, "y0: expected the structure", half, Z0, {"y0": [Z0]}),
        (ValueError, "y0: expected leaves like", half, Z0, {"y0": Z0.half()}),
        (ValueError, "y0: expected leaves like", half, Z0, {"y0": Z0[:1]}),
        (ValueError, r"f: .*shape of z0, \(3, 4\), got \(3, 1\)", lambda z: z[:, :1], Z0, {}),
        (TypeError, "f: .*got NoneType", lambda z: None, Z0, {}),
        (ValueError, "f: .*device of z0, cpu, got meta", lambda z: z.to("meta"), Z0, {}),
        (TypeError, "f: .*structure", lambda z: z[0], [Z0], {}),
    ],
)
def test_errors_name_the_argument_and_the_way_out(
    error: type[Exception], message: str, f: Callable, z0: object, options: dict
) -> None:
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(error, match=message) as raised:
            solve(f, z0, **options)
        assert re.search("expected", str(raised.value))


def test_f_that_changes_its_dtype() -> None:
    calls: list[int] = []

    def f(z: Tensor) -> Tensor:
        calls.append(1)
        return z.half() if len(calls) == 3 else z

    with pytest.raises(ValueError, match=r"float32, as in the first evaluation.*got torch.float16"):
        solve(f, Z0)


def test_f_that_changes_its_state_in_place() -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="f: expected to leave its state"):
        solve(lambda z: z.mul_(0.5), Z0)
    with pytest.raises(RuntimeError, match="f: expected to leave its state"):
        solve(lambda z: z.mul_(0.5), Z0)
    assert not Z0.any()
