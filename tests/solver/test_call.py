"""Calls that f does not fit, and results that are read like those of another library."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.solver.cells import MLP
from torch_revdeq import FixedPoint, RevDEQ, Solution, fixed_point, solve

Z0 = torch.zeros(3, 16)
SOLVES = pytest.mark.parametrize("run", [solve, fixed_point])


def affine(z: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    return 0.5 * z * mask + x


class Affine(nn.Module):
    def forward(self, z: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        return affine(z, x, mask)


def by_name(z: Tensor, *, x: Tensor) -> Tensor:
    return 0.5 * z + x


# ---- arguments of f ----------------------------------------------------------------------------


@SOLVES
@pytest.mark.parametrize("f", [affine, Affine()], ids=["function", "module"])
@pytest.mark.parametrize(
    ("given", "said"), [(0, "got none for x, mask; .* pass them"), (1, "got none for mask; .* it")]
)
def test_arguments_of_f_that_were_not_passed(
    given: int, said: str, f: Callable[..., Tensor], run: Any
) -> None:
    where = re.escape("after z0, as in solve(f, z0, x, mask) or layer(x, mask)")
    with pytest.raises(TypeError, match=rf"^f: expected an argument .*, {said} {where}$"):
        run(f, Z0, *[Z0] * given)
    if given:
        with pytest.raises(TypeError, match=rf"^f: expected an argument .*, {said} {where}$"):
            RevDEQ(f)(Z0)


def test_a_keyword_of_f_that_was_not_passed() -> None:
    said = re.escape("got none for x; f is called with the state first: pass kwargs={'x': ...}")
    with pytest.raises(TypeError, match=rf"^f: expected an argument .*, {said}$"):
        solve(by_name, Z0)
    assert solve(by_name, Z0, kwargs={"x": Z0}).z.shape == Z0.shape


def test_a_type_error_inside_f_is_left_alone() -> None:
    def broken(z: Tensor, x: Tensor, *, step: int) -> Tensor:
        return affine(z, x)  # type: ignore[call-arg]

    with pytest.raises(TypeError, match=r"^affine\(\) missing 1 required positional argument"):
        solve(broken, Z0, Z0, pass_step=True)


@SOLVES
@pytest.mark.parametrize("f", [affine, Affine()], ids=["function", "module"])
def test_more_arguments_than_f_takes(f: Callable[..., Tensor], run: Any) -> None:
    said = re.escape(
        "f: expected at most 2 arguments after the state, got 3; the state is z0, in "
        "solve(f, z0, x, mask) or layer(x, mask, z0=z0)"
    )
    with pytest.raises(TypeError, match=rf"^{said}$"):
        run(f, Z0, Z0, Z0, Z0)
    with pytest.raises(TypeError, match=rf"^{said}$"):
        RevDEQ(f)(Z0, Z0, Z0)


def test_one_argument_where_f_takes_the_state_alone() -> None:
    said = re.escape("f: expected no argument after the state, got 1; ")
    with pytest.raises(TypeError, match=said + re.escape("the state is z0, in solve(f, z0)")):
        solve(lambda z: z, Z0, Z0)
    with pytest.raises(TypeError, match=said + re.escape("pass kwargs={'x': ...}")):
        solve(by_name, Z0, Z0)


def test_keywords_that_f_has_do_not_explain_an_argument_too_many() -> None:
    def scaled(z: Tensor, x: Tensor, step: int = 0, *, scale: float = 0.5) -> Tensor:
        return scale * z + x

    said = re.escape("f: expected at most 1 argument after the state, got 2; the state is z0")
    with pytest.raises(TypeError, match=said):
        solve(scaled, Z0, Z0, Z0, pass_step=True)
    said = re.escape("f: expected at most 2 arguments after the state, got 3; the state is z0")
    with pytest.raises(TypeError, match=said):
        solve(scaled, Z0, Z0, Z0, Z0)


@pytest.mark.parametrize("before", [False, True])
def test_the_step_is_not_among_the_arguments_to_pass(before: bool) -> None:
    def late(z: Tensor, a: Tensor, step: int) -> Tensor:
        return 0.5 * z + a

    def early(z: Tensor, step: int, a: Tensor) -> Tensor:
        return 0.5 * z + a

    said = re.escape("got none for a; f is called with the state first: pass it after z0, as in ")
    with pytest.raises(TypeError, match=said + re.escape("solve(f, z0, a) or layer(a)")):
        solve(early if before else late, Z0, pass_step=True)


def test_errors_of_wrappers_and_hooks_are_left_alone() -> None:
    """They may call f with other arguments than the solver's."""

    def broken(z: Tensor, x: Tensor) -> Tensor:
        return z + x + "a"  # type: ignore[operator]

    @wraps(broken)
    def wrapper(*args: Tensor) -> Tensor:
        return broken(*args[:2])

    with pytest.raises(TypeError, match="unsupported operand type"):
        solve(wrapper, Z0, Z0, Z0)
    f = Affine()
    f.register_forward_pre_hook(lambda _, args: args[:2])
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'mask'"):
        solve(f, Z0, Z0, Z0, Z0)


def test_an_argument_of_f_by_name() -> None:
    with pytest.raises(TypeError, match=r"^x: .*; pass arguments of f by position, after z0"):
        fixed_point(affine, Z0, x=Z0, mask=Z0)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=re.escape("functools.partial(f, x=...)")):
        fixed_point(by_name, Z0, x=Z0)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="pass f's first argument by position, or z0="):
        RevDEQ(affine)(x=Z0, mask=Z0)


@SOLVES
@pytest.mark.parametrize("f", [affine, MLP()], ids=["function", "module"])
def test_swapped_arguments(f: Any, run: Any) -> None:
    order = re.escape(f"the order is {run.__name__}(f, z0, *args)")
    got = r"a tensor of shape \(3, 16\)"
    with pytest.raises(TypeError, match=rf"^f: expected a callable .*, got {got}; {order}$"):
        run(Z0, f)
    with pytest.raises(TypeError, match=rf"^f: expected a callable .*, got list; {order}$"):
        run([Z0], f, Z0)


def test_a_class_instead_of_a_module() -> None:
    for call in (
        partial(solve, Affine, Z0),
        partial(fixed_point, Affine, Z0),
        lambda: RevDEQ(Affine),
    ):
        with pytest.raises(TypeError, match=r"^f: .* got the class Affine; make an .*: Affine\("):
            call()
    with pytest.raises(TypeError, match=r"^f: expected a callable .*; the order is RevDEQ\(f, "):
        RevDEQ(Z0)  # type: ignore[arg-type]


@pytest.mark.parametrize("kwargs", [[Z0], Z0], ids=["list", "tensor"])
def test_keywords_that_are_no_dict(kwargs: Any) -> None:
    said = rf"^kwargs: expected a dict of f's keyword arguments, got {type(kwargs).__name__}; pass"
    for call in (partial(solve, affine, Z0), RevDEQ(affine)):
        with pytest.raises(TypeError, match=said):
            call(Z0, kwargs=kwargs)


# ---- what is returned --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "name"),
    [
        (solve(torch.tanh, Z0), "solution"),
        (RevDEQ(affine).solve(Z0, Z0, z0=Z0), "solution"),
        (fixed_point(torch.tanh, Z0), "found"),
    ],
    ids=["solve", "layer.solve", "fixed_point"],
)
def test_a_result_is_not_a_tuple(result: Solution | FixedPoint, name: str) -> None:
    kind, any_result = type(result).__name__, result
    said = rf"^a {kind} is read by attributes, .*; take {name}\.z and {name}\.stats$"
    with pytest.raises(TypeError, match=said):
        _, _ = any_result
    with pytest.raises(TypeError, match=said):
        _, *_ = any_result
    with pytest.raises(TypeError, match=said):
        any_result[0]
    for other in (copy.copy(result), pickle.loads(pickle.dumps(result))):
        assert torch.equal(other.z, result.z) and other.stats.steps == result.stats.steps
