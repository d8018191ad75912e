"""Samples for a call: the kinds of arguments that they distinguish are those of the compiler."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from revdeq_kernels import reference
from revdeq_kernels.core import first_use
from revdeq_kernels.core.op import OPS as REGISTERED
from revdeq_kernels.core.samples import (
    LEAVES_AT_ONCE,
    NUMEL,
    WHOLE,
    Kind,
    kind_of,
    kinds_of,
    samples,
    samples_like,
)
from tests.ops.arguments import OVERLOADS, as_called, good_arguments

CPU, F32 = torch.device("cpu"), torch.float32


@pytest.mark.parametrize("op", OVERLOADS)
def test_samples_like_a_call_are_what_its_kernel_is_compiled_for(op: str) -> None:
    """Dtypes, alignment, size, the form of the digits or the layout of betas, and the leaves."""
    described = REGISTERED[op]
    for args, keywords in samples(described):
        for kind in kinds_of(described, tuple(args), keywords):
            found = list(samples_like(described, kind, tuple(args)))
            for like, named in found:
                assert kinds_of(described, tuple(like), named) == {kind}
            assert 1 <= len(found) <= 4
            described.check(*found[0][0], **found[0][1])


def test_a_kind_is_told_from_others_by_all_that_is_compiled() -> None:
    op = REGISTERED["update_exact_"]

    def kind(numel: int = 40, beta: float = 0.5, f: torch.dtype = F32, cast: bool = False) -> Kind:
        a = good_arguments("update_exact_", (numel,), beta=beta)
        kw = {"cast": a["f"].clone()} if cast else {}
        numbers = (beta, 16, 0)
        return kind_of(op, (a["state"], a["digits"], a["flag"], a["f"].to(f), *numbers), kw)

    assert kind() == kind(numel=24) == kind(numel=1000)
    kinds = [kind(), kind(cast=True), kind(f=torch.bfloat16), kind(numel=48), kind(numel=1)]
    kinds += [kind(beta=0.8), kind(beta=0.7312), kind(beta=0.75), kind(beta=0.875)]
    kinds += [kind(beta=1 - 1 / q) for q in (32, 33, 33.5)]  # of one digit in a byte each
    assert len(set(kinds)) == len(kinds)
    assert kind(beta=1.5) == kind()  # the sign is a number like others


def test_an_exact_step_is_tried_with_a_beta_of_its_own_form() -> None:
    op = REGISTERED["update_exact_"]
    for beta, tried in ((0.5, {0.5}), (1.5, {0.5}), (0.7312, {0.7312, 1.3}), (0.9375, {0.9375})):
        arguments = good_arguments("update_exact_", beta=beta)
        args, keywords = as_called("update_exact_", arguments)
        (kind,) = kinds_of(op, args, keywords)
        assert {like[4] for like, _ in samples_like(op, kind, args)} == tried


def test_mixed_leaves_are_as_many_kinds() -> None:
    op = REGISTERED["update_.list"]
    leaves = [torch.zeros(7), torch.zeros(32), torch.zeros(9, dtype=torch.float64)]
    f = [torch.zeros_like(leaf) for leaf in leaves]
    f64 = torch.float64
    expected = {
        Kind((F32, F32), (True, True), NUMEL, ()),
        Kind((F32, F32), (True, True), WHOLE, ()),
        Kind((f64, f64), (True, True), NUMEL, ()),
    }
    assert kinds_of(op, (leaves, f, 0.5), {}) == expected


def test_leaves_that_are_launched_together_are_a_kind_of_their_own() -> None:
    """Triton compiles a kernel for each number of leaves; empty ones are in no launch."""
    op = REGISTERED["update_.list"]

    def launches(count: int, *more: int) -> list[int]:
        leaves = [torch.zeros(n) for n in (7,) * count + more]
        return sorted(kind.leaves for kind in kinds_of(op, (leaves, leaves, 0.5), {}))

    assert launches(3) == launches(3, 0) == [3]
    assert launches(3, 16, 1, 1) == [1, 2, 3]
    assert launches(LEAVES_AT_ONCE) == [LEAVES_AT_ONCE]
    assert launches(2 * LEAVES_AT_ONCE + 3) == [3, LEAVES_AT_ONCE]
    assert launches(0, 0) == []


def test_a_tensor_that_is_not_aligned_is_of_another_kind_and_tried_as_it_is() -> None:
    op, memory = REGISTERED["update_"], torch.zeros(41)
    (kind,) = kinds_of(op, (memory[1:], memory[:40], 0.5), {})
    assert kind.aligned == (False, True)
    moved: list[list[bool]] = []

    def run(*args: Any, **keywords: Any) -> None:
        moved.append([t.data_ptr() % 16 != 0 for t in args[:2]])
        reference.update_(*args, **keywords)

    first_use.compare("triton", op, CPU, run, samples_like(op, kind, ()))
    assert moved and all(m == [True, False] for m in moved)


def test_the_layout_of_betas_is_a_kind_of_its_own() -> None:
    op, wide = REGISTERED["update_.channels"], torch.rand(32, 16)
    states = {n: torch.zeros(4, 32, n) for n in (1, 3, 16)}
    betas = {1: wide[0, :1], 2: wide[:2].reshape(32, 1), 3: wide[:, :1]}
    kinds = {kind_of(op, (s, s, b), {}) for s in states.values() for b in betas.values()}
    assert len(kinds) == 7  # one beta is the same in states of one size
    for kind in kinds:
        for args, keywords in samples_like(op, kind, ()):
            assert kind_of(op, tuple(args), keywords) == kind
            assert args[2].stride() == first_use._copies(args, {}, "cpu")[0][2].stride()
