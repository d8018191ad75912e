#!/usr/bin/env bash
# torch.export: what run_decompositions() does to a straight-through estimator, v + (soft - soft.detach()).
#
# Guess: an exported program keeps detach, as an operation of the graph, and its gradient is that of the module.
# Seen (torch 2.13.0, CPU, Python 3.11): exported, it does. After run_decompositions() aten.detach is gone from the
# graph, the program's values are the same, and its gradient is zero where the module's is not: soft - soft cancels.
# Nothing is said. A round trip through integers of the same bits, t.view(torch.int32).view(torch.float32), survives.
# What it means here: a solve unrolled for export cuts gradients by that round trip, not by detach.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import torch
from torch import nn


class Rounded(nn.Module):
    """Rounds forward, and has the gradient of tanh."""

    def __init__(self, cut):
        super().__init__()
        self.cut = cut

    def forward(self, x):
        soft = torch.tanh(x)
        return torch.round(4 * soft) / 4 + (soft - self.cut(soft))


def gradient(run, x):
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(run(x).sum(), x)
    return found


cuts = {"detach": torch.detach, "by integers": lambda t: t.view(torch.int32).view(torch.float32)}
x = torch.linspace(-1, 1, 8)
kept = {}
for name, cut in cuts.items():
    module = Rounded(cut)
    exported = torch.export.export(module, (x,))
    lowered = exported.run_decompositions()
    want = gradient(module, x)
    assert torch.equal(gradient(exported.module(), x), want), "changed: export itself loses it"
    found = gradient(lowered.module(), x)
    assert torch.equal(lowered.module()(x), module(x))
    kept[name] = torch.equal(found, want)
    print(f"{name}: largest gradient {want.max():.2f} before, {found.max():.2f} after run_decompositions()")
    if name == "detach":
        assert not found.any(), "changed: run_decompositions() keeps detach"
        assert not any("detach" in str(node.target) for node in lowered.graph.nodes)
assert kept == {"detach": False, "by integers": True}, kept
PYTHON
echo "as stated above"
