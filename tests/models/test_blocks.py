"""The cells of the language models: they are their equations, and differentiated exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tolerances import assert_within, unit_roundoff
from torch_revdeq.models.blocks import BLOCKS, rotated, rotations
from torch_revdeq.testing import assert_exact_gradients


def in_float64(block: str) -> Any:
    """A cell with weights of unit deviation in every parameter, so that no part is small."""
    torch.manual_seed(0)
    cell = BLOCKS[block](8, 2, 12, dropout=0.0).double()
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return cell


def test_the_papers_block_is_its_equations() -> None:
    """With torch's own multi-head attention, to the roundings of some hundred operations."""
    cell = in_float64("paper")
    own = cell.attention
    heads = torch.nn.MultiheadAttention(8, 2, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        heads.in_proj_weight.copy_(torch.cat((own.q.weight, own.k.weight, own.v.weight)))
        heads.out_proj.weight.copy_(own.out.weight)
    z, x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    h = F.layer_norm(z + x, (8,), cell.norm1.weight, cell.norm1.bias)
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    parts = (own.outer_q(h), own.outer_k(h), own.outer_v(h))
    want = z + heads(*parts, attn_mask=later, need_weights=False)[0]
    h = F.layer_norm(want, (8,), cell.norm2.weight, cell.norm2.bias)
    first, second, third = cell.mlp[0], cell.mlp[2], cell.mlp[4]
    h = F.gelu(second(F.gelu(first(h), approximate="tanh")), approximate="tanh")
    assert_within([cell(z, x)], [want + third(h)], 300 * unit_roundoff(torch.float64))


def test_the_modern_block_is_its_equations() -> None:
    """Written out for each head, to the roundings of some hundred operations."""
    cell = in_float64("modern")
    z, x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    rotation = rotations(0, 5, 4, z)

    def norm(h: Tensor, weight: Tensor) -> Tensor:
        return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    want = z + x
    queries, keys, values = cell.attention.qkv(norm(want, cell.norm1.weight)).split(8, -1)
    gathered = []
    for part in (slice(0, 4), slice(4, 8)):
        q, k = (rotated(h[..., part], rotation) for h in (queries, keys))
        shares = q @ k.mT / 2 + torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1)
        gathered.append(shares.softmax(-1) @ values[..., part])
    want = want + torch.cat(gathered, -1) @ cell.attention.out.weight.mT
    gate, up = cell.mlp.gate_up(norm(want, cell.norm2.weight)).split(12, -1)
    want = want + (gate * gate.sigmoid() * up) @ cell.mlp.down.weight.mT
    want = norm(want, cell.norm3.weight)
    assert_within([cell(z, x, rotation)], [want], 300 * unit_roundoff(torch.float64))


def test_rotary_positions_are_relative() -> None:
    """Products of queries and keys depend on the distance: to some roundings of float64.

    Each is a sum of 8 products of numbers below 5 in size, whose angles are rounded too.
    """
    q, k = torch.randn(2, 1, 1, 6, 8, dtype=torch.float64)
    near, far = (
        rotated(q, rotation) @ rotated(k, rotation).mT
        for rotation in (rotations(first, 6, 8, q) for first in (0, 100))
    )
    allowed = 100 * 8 * 25 * 2.0**-53 * 4
    assert (near - far).abs().max() <= allowed
    assert (near - q @ k.mT).abs().max() > 0.1
    assert torch.equal(rotated(q, rotations(0, 6, 8, q))[..., 0, :], q[..., 0, :])


@pytest.mark.parametrize("block", [*BLOCKS])
def test_the_cell_is_differentiated_exactly(block: str) -> None:
    torch.manual_seed(0)
    cell = BLOCKS[block](16, 2, 32, dropout=0.1)
    x = torch.randn(2, 6, 16, requires_grad=True)
    rotation = rotations(0, 6, 8, x) if block == "modern" else None
    options: dict[str, Any] = {"max_steps": 6, "beta": 0.8, "rng": "shared"}
    assert_exact_gradients(cell, torch.zeros_like(x), x, rotation, **options)
