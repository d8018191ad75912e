"""A call runs the kernels that were compiled and compared in the preceding first-use check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from revdeq_kernels.core.op import OPS
from revdeq_kernels.core.samples import LEAVES_AT_ONCE, kinds_of, samples_like
from tests.ops.arguments import arguments_of_leaf, as_called, channel_arguments, lists_of
from tests.ops.device_checks import placed
from tools.ptx.triton import Launch, executed

SIZES = (33, 48, 0, 47, 1, 80, 35)
"""Leaves of three kinds to Triton, whose launches have 3, 2 and 1 of them; and an empty one."""

LAYOUTS = {
    "in rows": ((3, 16), (16,), 1),
    "in columns": ((3, 16), (3, 1), 1),
    "one": ((3, 5), (1,), 1),
    "strided": ((3, 7), (7,), 3),
    "strided by 16": ((4, 5, 4), (5, 1), 16),
    "large inner": ((2, 3, 16), (3, 1), 1),
    "transposed": ((16, 3, 16), (16, 1, 1), 1),
}
"""Shapes of the state and of beta, and beta's stride."""

LISTS = ("update_.list", "invert_exact_.list", "residual.list", "dequantize.list")


def unchecked(label: str, arguments: dict[str, Any], offset: int) -> list[str]:
    """The launches of a call that run what was not compiled for the samples of its first use."""
    op = OPS[label]
    args, keywords = as_called(label, placed(arguments, "cpu", offset))
    with executed(90) as gpu:
        for kind in kinds_of(op, args, keywords):
            for like, named in samples_like(op, kind, args):
                # As compare() hands them over: strides and alignment are part of the kind.
                op.run("triton", *like, **named)
        checked = {compiled(launch) for launch in gpu.launches}
        before = len(gpu.launches)
        op.run("triton", *args, **keywords)
        assert len(gpu.launches) > before
        return [str(one) for one in map(compiled, gpu.launches[before:]) if one not in checked]


def compiled(launch: Launch) -> tuple[Any, ...]:
    """All that a kernel is compiled for."""
    source = launch.source
    constants, attributes = (sorted(map(str, d.items())) for d in (source.constants, source.attrs))
    return source.fn.__name__, str(source.signature), *constants, *attributes


@pytest.mark.parametrize("offset", [0, 1])
def test_one_leaf(offset: int, compiling: Callable[..., Any]) -> None:
    """Also where no tensor is aligned."""
    arguments = arguments_of_leaf("update_", (40,))
    assert compiling(unchecked, "update_", arguments, offset) == []


@pytest.mark.parametrize("layout", [LAYOUTS["in rows"], LAYOUTS["strided"]])
def test_a_tensor_of_betas(layout: Any, compiling: Callable[..., Any]) -> None:
    assert compiling(unchecked, "update_.channels", of_layout(*layout), 0) == []


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_betas(name: str, offset: int, compiling: Callable[..., Any]) -> None:
    assert compiling(unchecked, "invert_.channels", of_layout(*LAYOUTS[name]), offset) == []


def of_layout(shape: tuple[int, ...], beta: tuple[int, ...], stride: int) -> dict[str, Any]:
    arguments = channel_arguments("update_.channels", shape, beta)
    betas = arguments["beta"]
    strides = tuple(stride if n > 1 else 1 for n in beta)
    wide = torch.zeros(betas.numel() * stride).as_strided(beta, strides)
    return arguments | {"beta": wide.copy_(betas)}


def test_a_list_of_several_kinds(compiling: Callable[..., Any]) -> None:
    assert compiling(unchecked, "update_.list", of_sizes("update_.list", SIZES), 0) == []


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [SIZES, (33,) * (LEAVES_AT_ONCE + 1), (16,)])
@pytest.mark.parametrize("op", LISTS)
def test_every_list(op: str, sizes: tuple[int, ...], compiling: Callable[..., Any]) -> None:
    for offset in (0, 1):
        assert compiling(unchecked, op, of_sizes(op, sizes), offset) == []


def of_sizes(op: str, sizes: tuple[int, ...]) -> dict[str, Any]:
    return lists_of(op, [arguments_of_leaf(op, (n,)) for n in sizes])
