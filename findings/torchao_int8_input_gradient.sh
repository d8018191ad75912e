#!/usr/bin/env bash
# torchao's int8 weights with int8 activations, in a frozen layer that gradients have to pass through.
#
# Guess: the rounding of the activations is passed straight through, or the layer is inference-only and backward()
# raises, as integer operations do.
# Seen (torchao 0.18.0, torch 2.13.0, CPU, Python 3.11): neither. The output of a Linear quantized with
# Int8DynamicActivationInt8WeightConfig has a grad_fn, because the bias is added by an ordinary operation, and its
# input gets no gradient: backward() succeeds and x.grad stays None. Without a bias the output has no history, and
# backward() raises only if nothing else does. Behind a skip connection, x + layer(x), the gradient is that of the
# skip alone. Int8WeightOnlyConfig has the right gradient.
# What it means here: a cell with such a layer trains without its recurrent gradient, and no comparison with autograd
# can notice, because autograd has none either. Use weight-only quantization under adapters that are trained.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 torchao==0.18.0
"$folder/env/bin/python" -W ignore - 2>"$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import torch
from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_


def gradients(config, bias):
    """The input's gradient, alone and with a skip connection, beside those of the unquantized layer."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(64, 64, bias=bias))
    plain = layer[0].weight.detach().clone()
    quantize_(layer, config)
    x = torch.randn(8, 64, requires_grad=True)
    found = layer(x)
    alone = torch.autograd.grad(found.sum(), x, allow_unused=True)[0] if found.requires_grad else None
    (skip,) = torch.autograd.grad((x + layer(x)).sum(), x)
    return found.requires_grad, alone, skip, plain.sum(0).expand(8, 64)


for bias in (True, False):
    history, alone, skip, want = gradients(Int8WeightOnlyConfig(), bias)
    assert history and torch.allclose(alone, want, atol=0.05) and torch.allclose(skip, 1 + want, atol=0.05), "changed"
    print(f"int8 weights, bias {bias}: the input's gradient is right")
    history, alone, skip, want = gradients(Int8DynamicActivationInt8WeightConfig(), bias)
    print(f"int8 weights and activations, bias {bias}: output has a history: {history}, the input's gradient: {alone}")
    assert history == bias, "changed: the history of the output"
    assert alone is None, "changed: the layer's input has a gradient"
    assert torch.equal(skip, torch.ones_like(skip)), "changed: the layer adds to the gradient of the skip connection"
    assert want.abs().max() > 0.5
PYTHON
echo "as stated above"
