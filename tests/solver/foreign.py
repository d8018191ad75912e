"""f for ``test_foreign.py``: third-party layers with random weights and small sizes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

F = Callable[[Tensor, Tensor], Tensor]
Made = tuple[F, tuple[int, ...]]
"""f, and the shape of its state."""

SEQUENCE = (2, 8, 32)
IMAGE = (2, 16, 8, 8)


def on_the_sum(layer: Callable[..., object], **kwargs: object) -> F:
    """f(z, x) = layer(z + x), the first of its outputs if there are several."""

    def f(z: Tensor, x: Tensor) -> Tensor:
        out = layer(z + x, **kwargs)
        out = out[0] if isinstance(out, tuple) else out
        assert isinstance(out, Tensor)
        return out

    return f


# ---- transformers ----------------------------------------------------------------------------

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}


def of(model: str, *names: str) -> list[Any]:
    """Classes of one model in transformers, whose own type hints are too loose for pyright."""
    module = importlib.import_module(f"transformers.models.{model}")
    return [getattr(module, name) for name in names]


def llama(attention: str = "sdpa") -> Made:
    (config_of,) = of("llama", "LlamaConfig")
    layer_of, positions_of = of("llama.modeling_llama", "LlamaDecoderLayer", "LlamaRotaryEmbedding")
    config = config_of(**SIZES, num_key_value_heads=2, attn_implementation=attention)
    positions = positions_of(config)(torch.zeros(SEQUENCE), torch.arange(8)[None])
    return on_the_sum(layer_of(config, 0), position_embeddings=positions), SEQUENCE


def gpt2() -> Made:
    """In train mode, with dropout inside and after the attention."""
    (config_of,), (block_of,) = of("gpt2", "GPT2Config"), of("gpt2.modeling_gpt2", "GPT2Block")
    config = config_of(n_embd=32, n_head=4, n_positions=16, attn_implementation="eager")
    return on_the_sum(block_of(config, 0)), SEQUENCE


def bert() -> Made:
    """In train mode, with dropout."""
    (config_of,), (layer_of,) = of("bert", "BertConfig"), of("bert.modeling_bert", "BertLayer")
    return on_the_sum(layer_of(config_of(**SIZES, attn_implementation="sdpa"))), SEQUENCE


def vit() -> Made:
    (config_of,), (layer_of,) = of("vit", "ViTConfig"), of("vit.modeling_vit", "ViTLayer")
    return on_the_sum(layer_of(config_of(**SIZES, attn_implementation="sdpa"))), SEQUENCE


def convnext() -> Made:
    """With stochastic depth, and channels_last."""
    (config_of,) = of("convnext", "ConvNextConfig")
    (layer_of,) = of("convnext.modeling_convnext", "ConvNextLayer")
    layer = layer_of(config_of(), IMAGE[1], drop_path=0.2)
    return on_the_sum(layer.to(memory_format=torch.channels_last)), IMAGE


def t5() -> Made:
    (config_of,), (block_of,) = of("t5", "T5Config"), of("t5.modeling_t5", "T5Block")
    config = config_of(d_model=32, d_kv=8, num_heads=4, d_ff=64, attn_implementation="eager")
    return on_the_sum(block_of(config, has_relative_attention_bias=True)), SEQUENCE


def mixtral() -> Made:
    """A mixture of experts: different experts may run in each half step."""
    (config_of,) = of("mixtral", "MixtralConfig")
    (layer_of,) = of("mixtral.modeling_mixtral", "MixtralSparseMoeBlock")
    config = config_of(**SIZES, num_local_experts=4, num_experts_per_tok=2)
    config._experts_implementation = "eager"
    layer = layer_of(config)
    for parameter in layer.parameters():  # the experts' weights come from torch.empty
        nn.init.normal_(parameter, std=0.1)
    return on_the_sum(layer), SEQUENCE


def whole_qwen3() -> Made:
    """A model with two layers that fills a key cache, which is never read."""
    (config_of,), (model_of,) = of("qwen3", "Qwen3Config"), of("qwen3", "Qwen3Model")
    layers = {"num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8}
    model = model_of(config_of(**SIZES, **layers, vocab_size=32))
    return lambda z, x: model(inputs_embeds=z + x).last_hidden_state, SEQUENCE


def checkpointed_llama() -> Made:
    """With its own gradient checkpointing inside ours."""
    (config_of,), (model_of,) = of("llama", "LlamaConfig"), of("llama", "LlamaModel")
    model = model_of(config_of(**SIZES, vocab_size=32, num_hidden_layers=2)).train()
    model.activation_checkpointing_enable()
    return lambda z, x: model(inputs_embeds=z + x, use_cache=False).last_hidden_state, SEQUENCE


# ---- torch.nn and einops ---------------------------------------------------------------------


def encoder_layer(*, norm_first: bool = False, train: bool = True) -> Made:
    """In eval mode it has a separate path for calls without gradients."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first)
    return on_the_sum(layer.train(train)), SEQUENCE


def attention(*, train: bool = True) -> Made:
    layer = nn.MultiheadAttention(32, 4, dropout=0.1, batch_first=True).train(train)
    return lambda z, x: layer(z + x, z + x, z + x)[0], SEQUENCE


def gru_cell() -> Made:
    cell = nn.GRUCell(16, 16)
    return lambda z, x: cell(x, z), (4, 16)


def lstm() -> Made:
    return on_the_sum(nn.LSTM(16, 16, batch_first=True)), (2, 8, 16)


def batch_norm() -> Made:
    """In train mode: running statistics change in the forward, not again in the backward pass."""
    return on_the_sum(nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4))), (4, 4, 8)


def orthogonal() -> Made:
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(16, 16))
    return lambda z, x: torch.tanh(layer(z) + x), (4, 16)


def einops_closure() -> Made:
    heads = nn.Linear(8, 8)

    def f(z: Tensor, x: Tensor) -> Tensor:
        split = heads(rearrange(z + x, "b (h d) -> b h d", h=4))
        return torch.tanh(rearrange(split, "b h d -> b (h d)"))

    return f, (4, 32)


def einops_layers() -> Made:
    split, join = Rearrange("b (h d) -> b h d", h=4), Rearrange("b h d -> b (h d)")
    return on_the_sum(nn.Sequential(split, nn.Linear(8, 8), nn.Tanh(), join)), (4, 32)


TRANSFORMERS: dict[str, Callable[[], Made]] = {
    "llama": llama,
    "llama, eager attention": lambda: llama("eager"),
    "gpt2": gpt2,
    "bert": bert,
    "vit": vit,
    "convnext": convnext,
    "t5": t5,
    "mixtral": mixtral,
    "qwen3, two layers": whole_qwen3,
    "llama, checkpointed": checkpointed_llama,
}

OTHERS: dict[str, Callable[[], Made]] = {
    "encoder layer": encoder_layer,
    "encoder layer, eval": lambda: encoder_layer(train=False),
    "encoder layer, norm first": lambda: encoder_layer(norm_first=True),
    "attention": attention,
    "attention, eval": lambda: attention(train=False),
    "gru cell": gru_cell,
    "lstm": lstm,
    "batch norm": batch_norm,
    "orthogonal": orthogonal,
    "einops closure": einops_closure,
    "einops layers": einops_layers,
}
