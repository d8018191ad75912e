"""Scopes: what a listener hears of a solve, and that nothing of it stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

import revdeq_kernels as rk
from torch_revdeq import solve
from torch_revdeq.adjoints.vjp import VJPs, engine_vjp
from torch_revdeq.evaluation.replay import Evaluation
from torch_revdeq.iteration.beta import BetaSchedule
from torch_revdeq.runtime import scopes
from torch_revdeq.state.formats import FORMATS, Start
from torch_revdeq.state.pair import Pair


def solved() -> None:
    z0 = torch.zeros(3, requires_grad=True)
    solution = solve(lambda z: torch.tanh(z + 1), z0, max_steps=2)
    solution.z.sum().backward()
    solution.verify()


def test_a_listener_hears_every_half_step_forward_and_back() -> None:
    heard: list[str] = []
    inside: list[str] = []

    @contextmanager
    def around(name: str) -> Iterator[None]:
        heard.append(name)
        inside.append(name)
        yield
        assert inside.pop() == name

    with scopes.listening(around):
        solved()
    steps = [name.removeprefix("half step ") for name in heard if name.startswith("half step")]
    forward = [f"{k}: {what}" for k in range(4) for what in ("f", "update")]
    one = ("f again", "product", "invert + adjoint")
    assert steps == forward + [f"{k}: {what}" for k in reversed(range(4)) for what in one]
    assert heard.count("kernel: update_exact_") == 4
    assert heard.count("check") == 3  # the range, and both ends of the way back
    count = len(heard)
    solved()
    assert len(heard) == count


def test_while_nobody_listens_the_functions_are_themselves() -> None:
    def found() -> list[object]:
        return [vars(Pair)["update_y"], vars(VJPs)["__call__"], vars(Evaluation)["__call__"]]

    plain = [*found(), rk.update_exact_]
    assert not any(hasattr(function, "__wrapped__") for function in [*found(), engine_vjp])
    with scopes.listening(lambda name: nothing()):
        assert [*found(), rk.update_exact_] != plain
    with pytest.raises(RuntimeError), scopes.listening(lambda name: nothing()):
        raise RuntimeError
    assert [*found(), rk.update_exact_] == plain


@contextmanager
def nothing() -> Iterator[None]:
    yield


def test_listeners_may_end_in_any_order() -> None:
    plain = rk.update_exact_
    heard: dict[str, list[str]] = {"first": [], "second": []}

    def listener(who: str) -> scopes.Open:
        def around(name: str) -> AbstractContextManager[None]:
            heard[who].append(name)
            return nothing()

        return around

    first, second = scopes.listening(listener("first")), scopes.listening(listener("second"))
    first.__enter__()
    second.__enter__()
    solved()
    first.__exit__(None, None, None)
    count = len(heard["first"])
    solved()
    second.__exit__(None, None, None)
    assert rk.update_exact_ is plain
    assert len(heard["first"]) == count and len(heard["second"]) == 2 * count > 0


def test_a_scope_takes_what_its_function_takes() -> None:
    pair = FORMATS[torch.float32].begin(
        Start(
            [torch.zeros(2)],
            None,
            [torch.ones(2)],
            FORMATS[torch.float32].layout([torch.float32], [torch.float32]),
            BetaSchedule(0.5, 1, exact=False),
            None,
            frac_bits=None,
            keep=False,
            may_stop=False,
            first_step=0,
        )
    )
    with scopes.listening(lambda name: nothing()):
        pair.update_y(0, f=[torch.ones(2)])
    assert torch.equal(pair.y[0], torch.full((2,), 0.5))
