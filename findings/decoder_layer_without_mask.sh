#!/usr/bin/env bash
# A decoder layer of transformers (LlamaDecoderLayer) called by itself, without an attention mask, under its three
# implementations of attention.
#
# Guess: all three compute the same function: causal attention, as in the decoder, or else full attention.
# Seen (transformers 5.24.0, torch 2.13.0, CPU, Python 3.11): "sdpa", the default, is causal; "eager" and
# "flex_attention" attend to all positions, future ones too. Other tokens in the second half of a sequence do not change
# sdpa's outputs for the first half, and change those of the two others by 79 %, without a warning. The model around the
# layers makes the masks; where there is none, sdpa asks the module whether it is causal (is_causal is True for all
# three), and the others do not ask. With a causal mask, sdpa and eager agree.
# What it means here: with a decoder layer as f, another attn_implementation is another model unless f gets a mask.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PYTHON'
import warnings

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

warnings.simplefilter("ignore")
torch.set_num_threads(1)
LENGTH = 16
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}


def layer_of(attention):
    config = LlamaConfig(**SIZES, attn_implementation=attention, initializer_range=0.3)
    torch.manual_seed(0)
    layer = LlamaDecoderLayer(config, 0).eval()
    for weight in layer.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.15)
    positions = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(LENGTH)[None])
    assert layer.self_attn.is_causal
    return lambda z, **given: layer(z, position_embeddings=positions, **given)


torch.manual_seed(1)
z = torch.randn(2, LENGTH, 64)
other = z.clone()
other[:, LENGTH // 2 :] = torch.randn(2, LENGTH // 2, 64)
mask = torch.zeros(1, 1, LENGTH, LENGTH)
mask.masked_fill_(torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1), float("-inf"))
given = {}
for attention in ("sdpa", "eager", "flex_attention"):
    layer = layer_of(attention)
    with torch.no_grad():
        out, changed = (layer(t)[:, : LENGTH // 2] for t in (z, other))
        if attention != "flex_attention":  # wants a mask of its own kind
            given[attention] = layer(z, attention_mask=mask)
    moved = float((out - changed).norm() / out.norm())
    print(f"{attention}: other tokens in the second half change the first half by {moved:.0%}")
    if attention == "sdpa":
        assert moved == 0, "changed: sdpa attends to what follows"
    else:
        assert moved > 0.05, f"changed: {attention} is causal"
assert torch.allclose(given["sdpa"], given["eager"], atol=1e-4), "with a mask they agree"
PYTHON
echo "as stated above"
