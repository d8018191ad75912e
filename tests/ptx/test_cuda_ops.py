"""Every op of csrc/cuda compiled by nvcc, run on a CPU, compared to the reference bit for bit.

The package's host code decides on the launches, and the PTX of the kernels is executed. The
executor also checks bounds, alignment and races, and that nothing is written that the op only
reads. The default tier runs the PTX that the package's build embeds for future GPUs.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from revdeq_kernels.core import first_use
from revdeq_kernels.core.op import OPS
from revdeq_kernels.core.roles import EXACT_BETA
from tests.ops.fuzz_example import Example
from tests.ops.fuzz_table import SPECS
from tests.ops.fuzzing import examples as arbitrary
from tests.ops.test_fuzz import SLOW, torch_takes
from tests.ptx import cases
from tools.ptx.cuda.compiled import ARCHS, NotCompiledError, known_archs
from tools.ptx.cuda.gpu import Gpu

TIERS = [
    pytest.param(arch, marks=pytest.mark.slow if arch == "90a" else pytest.mark.nightly)
    for arch in ARCHS
]

pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def gpu(arch: str) -> Gpu:
    """One for all tests; skips where there is no nvcc, or it is too old."""
    try:
        known = known_archs()
    except NotCompiledError as missing:
        pytest.skip(str(missing))
    if arch not in known:
        pytest.skip(f"this nvcc does not compile for compute_{arch}")
    return Gpu(arch)


def check(label: str, example: Example, arch: str) -> None:
    """Raise AssertionError unless the call does what it does on the reference."""
    got = cases.outcome(example, partial(gpu(arch).call, label))
    cases.assert_same(example, got, cases.expected(label, example))


@pytest.mark.parametrize("label", OPS)
def test_a_few_hard_arguments(label: str) -> None:
    """One list, or every fifth combination of dtypes."""
    step = 3 if label.endswith(".list") else 5
    for example in itertools.islice(cases.examples(label), 0, None, step):
        check(label, example, ARCHS[-1])


@pytest.mark.parametrize("arch", TIERS)
@pytest.mark.parametrize("label", OPS)
def test_hard_arguments(label: str, arch: str) -> None:
    for example in cases.examples(label, seed=1):
        check(label, example, arch)


@pytest.mark.nightly
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("label", OPS)
def test_more_hard_arguments(label: str, arch: str) -> None:
    for seed in range(2, 8):
        for example in cases.examples(label, seed):
            check(label, example, arch)


@pytest.mark.parametrize("arch", TIERS)
def test_every_kernel(arch: str) -> None:
    """Each runs, on tensors for vectors and on others; in one process, or some are not counted."""
    before = gpu(arch).launched.copy()
    for label, example in calls_of_every_kernel():
        check(label, example, arch)
    assert set(gpu(arch).launched - before) == set(gpu(arch).kernels)


def calls_of_every_kernel() -> Iterator[tuple[str, Example]]:
    """All dtypes, and every form of the exact step with every number of digits."""
    choices = random.Random(1)
    for label, op in OPS.items():
        if op.overload_name == "list" or "_adjoint_y_" in label or "_adjoint_z_" in label:
            continue
        exact = any(a.role == EXACT_BETA for a in op.arguments)
        betas = [{"beta": 1 - choices.choice((1, -1)) * m} for m in cases.MAGNITUDES]
        for (dtypes, numbers), beta, aligned in itertools.product(
            cases.combinations(label), betas if exact else [{}], (True, False)
        ):
            size = choices.choice((257, 1024, 1025, 4097))
            both = numbers | beta
            yield label, cases.one_example(label, choices, dtypes, size, aligned, **both)


@pytest.mark.nightly
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("label", OPS)
def test_samples_of_the_first_use(label: str, arch: str) -> None:
    """What a GPU is asked at an op's first use there (core/first_use.py)."""
    op = OPS[label]
    by_place = [a.name for a in op.arguments if not a.optional]

    def run(*args: Any, **keywords: Any) -> Any:
        named = dict(zip(by_place, args, strict=True)) | keywords
        return gpu(arch).call(label, {n: a for n, a in named.items() if a is not None})

    first_use.compare("cuda", op, torch.device("cpu"), run)


@pytest.mark.nightly
@pytest.mark.parametrize("label", SPECS)
def test_arbitrary_arguments(label: str) -> None:
    """Those of tests/ops/test_fuzz.py that torch hands on: the same result, or a refusal."""

    @settings(max_examples=150, deadline=None, suppress_health_check=SLOW)
    @given(arbitrary(SPECS[label], label))
    def run(example: Example) -> None:
        unlike = example.has("meta") or example.has("negative")  # no memory, or of torch's copy
        if unlike or not torch_takes(SPECS[label], example):
            return
        try:
            want = cases.expected(label, example)
        except RuntimeError:  # grad is asked for: refused above the kernels
            return
        except Exception:
            with pytest.raises(RuntimeError):
                cases.outcome(example, partial(gpu(ARCHS[-1]).call, label))
            return
        got = cases.outcome(example, partial(gpu(ARCHS[-1]).call, label))
        cases.assert_same(example, got, want)

    run()
