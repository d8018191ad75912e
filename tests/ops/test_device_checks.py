"""The checks of device_checks.py detect the faults that they are meant for."""

from __future__ import annotations

import pytest
import torch

from revdeq_kernels.exact_numbers import ONE, contraction
from tests.ops.arguments import (
    assert_same_outcome,
    expected,
    good_arguments,
)
from tests.ops.device_checks import (
    FORM_BETAS,
    any_bits,
    assert_nothing_around_was_written,
    place,
    placed,
)


def test_betas_reach_every_kernel_of_the_exact_step() -> None:
    """As in csrc/cuda/exact_step.cu: by the form of the step, and the digits in a byte."""
    reached = set()
    for beta in FORM_BETAS:
        c = contraction(beta)
        whole = c.q % 2**ONE == 0
        form = "general" if not whole else "integer" if c.base & (c.base - 1) else "shift"
        reached.add((form, c.digits_per_byte))
    assert reached == {
        *(("shift", digits) for digits in (8, 4, 2, 1)),
        *(("integer", digits) for digits in (5, 3, 2, 1)),
        *(("general", digits) for digits in (8, 5, 4, 3, 2, 1)),
    }


def test_any_bits_has_every_kind_of_number() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        arguments = any_bits(good_arguments("quantize", (100_000,), f=dtype))
        size = arguments["x"].abs()
        assert size.isnan().any()
        assert ((size > 0) & (size < torch.finfo(dtype).tiny)).any()
    state = any_bits(good_arguments("update_exact_", (1000,)))["state"]
    assert state.min() < -(2**30)
    assert state.max() > 2**30


def test_writing_beside_a_tensor_is_noticed() -> None:
    for index in (0, 1, 7, 14):
        mine = placed(good_arguments("update_", (5,), optional=False), "cpu", offset=2)
        assert_nothing_around_was_written(mine)
        mine["f"]._base[index] = 0
        if 2 <= index < 7:
            assert_nothing_around_was_written(mine)
        else:
            with pytest.raises(AssertionError, match="beside f"):
                assert_nothing_around_was_written(mine)


def test_views_are_misaligned_by_their_offset() -> None:
    t = place(torch.zeros(5, dtype=torch.int32), "cpu", offset=3)
    assert (t.data_ptr() - t.untyped_storage().data_ptr()) == 12
    assert t._base is not None
    assert t._base.numel() == 3 + 5 + 8


def test_a_wrong_bit_is_noticed() -> None:
    want = expected("update_exact_", good_arguments("update_exact_"))
    for name, t in want.items():
        wrong = t.clone()
        flat = wrong.view(-1).view(
            {1: torch.uint8, 2: torch.int16, 4: torch.int32}[t.element_size()]
        )
        flat[-1] ^= 1
        with pytest.raises(AssertionError, match=f"here: {name}: 1 of {t.numel()} elements differ"):
            assert_same_outcome(want | {name: wrong}, want, "here")
    with pytest.raises(AssertionError, match="here"):
        assert_same_outcome({"state": want["state"]}, want, "here")


def test_a_wrong_sign_of_zero_is_noticed_and_another_nan_is_not() -> None:
    zeros = {"x": torch.tensor([0.0])}
    with pytest.raises(AssertionError):
        assert_same_outcome({"x": torch.tensor([-0.0])}, zeros, "here")
    nan = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert_same_outcome({"x": nan[:1]}, {"x": nan[1:]}, "here")
