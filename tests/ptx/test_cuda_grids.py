"""The grids of csrc/cuda for leaves of any size: the host code's launches, on sparse addresses.

Only a few thousand elements have memory. The grid of each launch is checked, and the blocks of some
elements are run: the first, the last, and those around element 2^31.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from revdeq_kernels.core.op import OPS
from revdeq_kernels.ops.residual import _halve, _rows
from tests.ops.fuzz_example import fill
from tests.ptx.sparse import CHUNK, Call, ChannelRun, Run, Space
from tests.ptx.test_cuda_ops import gpu
from tools.ptx.cuda.compiled import ARCHS
from tools.ptx.cuda.gpu import Piece, call_recorded
from tools.ptx.cuda.recorder import Launch, recording
from tools.ptx.memory import bytes_at

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
I32, U8 = torch.int32, torch.uint8
G = 2**31

DTYPES = {"x": BF16, "f": BF16, "cast": BF16, "vjp": BF16, "seed": BF16, "digits": U8}
DTYPES |= dict.fromkeys(("state", "z", "y", "out"), I32)
DTYPES |= dict.fromkeys(("grad", "grad_y", "grad_z"), F32)
NUMBERS: dict[str, Any] = {"beta": 0.7312, "next_beta": 0.31, "scale": 0.2688, "frac_bits": 16}
NUMBERS |= {"tie": 1, "dtype": F16}

LISTS = [label for label in OPS if label.endswith(".list")]
MOST_BLOCKS = 2**31 - 1


def call_of(label: str, vectors: bool, **numbers: Any) -> Call:
    """The op with float32 states where they are floats, and bfloat16 beside them."""
    arguments = OPS[label].arguments
    tensors = [a.name for a in arguments if a.is_tensor and a.name != "flag"]
    dtypes = {name: DTYPES[name] for name in tensors}
    if "digits" not in dtypes and "quantize" not in label:
        dtypes |= {name: F32 for name in ("state", "z", "y") if name in dtypes}
    told = {a.name: (NUMBERS | numbers)[a.name] for a in arguments if not a.is_tensor}
    return Call(label, dtypes, told, vectors)


def sizes_of(label: str, *numels: int) -> list[int]:
    """The sizes; for an op that allocates its results, only sizes for which it can."""
    return [min(n, G + 5) for n in numels] if label == "dequantize.list" else list(numels)


FEW = ("update_.list", "quantize.list", "update_exact_.list", "invert_y_adjoint_z_exact_.list")


@pytest.mark.parametrize("label", FEW)
def test_leaves_beyond_32_bits(label: str) -> None:
    run = Run(gpu(ARCHS[-1]), call_of(label, vectors=True), sizes_of(label, 17, 2**33 + 5))
    run.check()
    assert run.launches == 1


@pytest.mark.slow
@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize("arch", ARCHS[:2])
@pytest.mark.parametrize("label", LISTS)
def test_more_large_leaves(label: str, arch: str, vectors: bool) -> None:
    for numels in ([G - 1], [G], [G + 1], [17, 2**33 + 3, 1, 2**34 + 2, G - 4], [2**36 + 77, 3]):
        Run(gpu(arch), call_of(label, vectors), sizes_of(label, *numels)).check()


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS[:2])
@pytest.mark.parametrize("beta", [0.5, 2 / 3, 1.2, 0.95, 0.99])
@pytest.mark.parametrize("label", [label for label in LISTS if "exact" in label])
def test_large_exact_leaves(label: str, beta: float, arch: str) -> None:
    """In every number of digits in a byte."""
    for vectors, numel in ((True, 2 * G + 5), (False, 2**35 + 31)):
        Run(gpu(arch), call_of(label, vectors, beta=beta), [33, numel, 2**31 + 7]).check()


@pytest.mark.parametrize(
    ("label", "numel"),
    [
        ("update_exact_.list", 2**42 + 7),
        ("update_.list", 2**40 + 9),
        ("adjoint_.list", 2**40 + 9),
        ("invert_y_adjoint_z_.list", 2**39 + 9),
        ("residual.list", 2**38 + 1),
    ],
)
def test_the_largest_leaves(label: str, numel: int) -> None:
    """As many elements as a grid, or the address space of a process, has room for."""
    Run(gpu(ARCHS[-1]), call_of(label, vectors=True, beta=0.5), [numel]).check()


@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize("label", ["update_.list", "invert_z_adjoint_y_.list"])
def test_as_many_launches_as_blocks_need(label: str, vectors: bool) -> None:
    """A launch has fewer than 2^31 blocks, counted as if no leaf had vectors."""
    halves = 1 + ("adjoint" in label)
    whole = MOST_BLOCKS // 2 // halves * 256
    run = Run(gpu(ARCHS[-1]), call_of(label, vectors), [whole, whole, 1, 256, whole])
    run.check()
    assert run.launches == 2


def test_norms_of_many_chunks() -> None:
    """The second kernel of a residual, for sums that no first one computed."""
    chunks = [1, 255, 256, 257, 3839, 3840, 4095, 4097, 9001, 70_001, *range(250, 260)]
    space, device, sums = Space(), gpu(ARCHS[-1]), torch.empty(0)
    made: list[Piece] = []

    def launched(launch: Launch) -> None:
        nonlocal sums
        if launch.kernel == "norms_kernel":
            device.launch(launch, made)
            return
        sums = fill("ordinary", torch.float64, 1, made[-1][1].size).view(torch.float64)
        made[-1][1][:] = sums.abs().view(U8).numpy()

    with recording(launched, lambda address, size: made.append((address, bytes_at(address, size)))):
        leaves = [space.tensor(count * CHUNK, F32) for count in chunks]
        norms = call_recorded("residual.list", {"z": leaves, "f": leaves})
    parts = sums.abs().view(-1, 2).split(chunks)
    expected = [_halve(_rows(column, -1)).sqrt() for part in parts for column in part.T]
    assert torch.equal(norms, torch.cat(expected).view(-1, 2))


CHANNELS = [
    (8, G + 1, 1, 1),
    (3, 3, G, 2),
    (G, 5, 7, 1),
    (2, 2**30 + 1, 3, 3),
    (1, 2, 2**33 + 1, 1),
]
"""How often the channels come, how many there are, their neighbors in memory, beta's stride."""


@pytest.mark.parametrize(("outer", "channels", "inner", "stride"), CHANNELS)
def test_channels_beyond_32_bits(outer: int, channels: int, inner: int, stride: int) -> None:
    call = call_of("update_.list", vectors=True)
    ChannelRun(gpu(ARCHS[-1]), call, outer, channels, inner, stride).check()


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS[:2])
@pytest.mark.parametrize("label", ["update_.list", "invert_.list"])
@pytest.mark.parametrize(("outer", "channels", "inner", "stride"), CHANNELS)
def test_more_channels_beyond_32_bits(
    outer: int, channels: int, inner: int, stride: int, label: str, arch: str
) -> None:
    for vectors in (True, False):
        call = call_of(label, vectors)
        ChannelRun(gpu(arch), call, outer, channels, inner, stride).check()
