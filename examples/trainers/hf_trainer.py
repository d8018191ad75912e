"""A looped Llama under Hugging Face's Trainer: `python examples/trainers/hf_trainer.py`.

Iterates one LlamaDecoderLayer, followed by a norm, to a fixed point. The model memorizes a few
lines; training is interrupted and resumed, and the model completes a line with and without a cache.
Needs transformers and accelerate.

What to watch:

- Pass f's inputs as arguments: the causal mask, the rotary embedding, the cache. Anything computed
  inside f is computed twice per step, and again in the backward pass.
- f only reads the cache; the model writes it once, after the solve. Its keys and values belong to
  the fixed point only if the solve reached its tol: check `stats.result`.
- Dropout with a tol needs `rng="shared"`: one mask for the whole solve. Otherwise f changes with
  every evaluation.
- Leave `activation_checkpointing` off. The solve stores no activations, so the flag only adds an
  evaluation of f to the backward pass; gradients are the same.
- With `bf16=True`, if the output of f is bfloat16, the residual stops falling near 2e-3: choose a
  larger tol.
- `torch_compile=True` works. With dropout in f, the solver itself stays eager; see `stats.route`.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn

from torch_revdeq import RevDEQ

try:
    import accelerate  # noqa: F401  # Trainer needs it
    from transformers import GenerationMixin, LlamaConfig, Trainer, TrainingArguments, set_seed
    from transformers.cache_utils import Cache, DynamicCache
    from transformers.masking_utils import create_causal_mask
    from transformers.modeling_outputs import CausalLMOutputWithPast
    from transformers.models.llama import modeling_llama as llama
except ModuleNotFoundError as error:
    raise SystemExit(f"hf_trainer: {error}; pip install '.[trainers]' in the clone") from None

LINES = [
    "Beautiful is better than ugly.",
    "Explicit is better than implicit.",
    "Simple is better than complex.",
    "Complex is better than complicated.",
    "Flat is better than nested.",
    "Sparse is better than dense.",
]


def config() -> LlamaConfig:
    """A new config for each model, because Trainer sets use_cache=False in it."""
    return LlamaConfig(
        vocab_size=128,  # ASCII
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=0.1,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=ord("."),
    )


class ReadOnly:
    """A read-only view of a cache: appends the keys and values of one evaluation, stores none."""

    def __init__(self, cache: DynamicCache) -> None:
        self.cache = cache

    def update(self, keys: Tensor, values: Tensor, layer: int, **_: Any) -> tuple[Tensor, Tensor]:
        """The cached keys and values of a layer, followed by these."""
        if not self.cache.get_seq_length(layer):
            return keys, values
        past: Any = self.cache.layers[layer]
        return torch.cat((past.keys, keys), -2), torch.cat((past.values, values), -2)


class Cell(nn.Module):
    """f(z, x). The norm keeps the state in range and lets it converge."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.layer = llama.LlamaDecoderLayer(config, layer_idx=0)
        self.norm = llama.LlamaRMSNorm(config.hidden_size)

    def forward(self, z: Tensor, x: Tensor, mask: Any, rotary: Any, cache: Any = None) -> Tensor:
        """The next state."""
        where = {"attention_mask": mask, "position_embeddings": rotary, "cache": cache}
        return self.norm(self.layer(z + x, **where))


class LoopedLlamaForCausalLM(llama.LlamaPreTrainedModel, GenerationMixin):
    """Tokens to embeddings, to a fixed point, to logits."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = llama.LlamaRMSNorm(config.hidden_size)
        self.rotary = llama.LlamaRotaryEmbedding(config)
        self.equilibrium = RevDEQ(Cell(config), max_steps=16, tol=1e-2, rng="shared")
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, the loss if there are labels, and the cache if requested."""
        x = self.norm(self.embed_tokens(input_ids))
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            first = cache.get_seq_length() if cache is not None else 0
            position_ids = torch.arange(first, first + x.shape[1], device=x.device)[None]
        mask = create_causal_mask(self.config, x, attention_mask, cache, position_ids)
        rotary = self.rotary(x, position_ids)
        if cache is None:
            z = self.equilibrium(x, mask, rotary)
        elif isinstance(cache, DynamicCache):
            z = self.equilibrium(x, mask, rotary, ReadOnly(cache))
            self.equilibrium.f(z, x, mask, rotary, cache)  # writes the cache for later tokens
        else:
            raise TypeError(f"cache: expected a DynamicCache, got {type(cache).__name__}")
        logits = self.lm_head(z)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, cache=cache)


class SolverTrainer(Trainer):
    """Logs the statistics of the last solve with the loss."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Send the log to every reporter."""
        stats: Any = self.accelerator.unwrap_model(self.model).equilibrium.stats
        super().log({**logs, **stats.as_dict("solver_")}, *args, **kwargs)


def collate(lines: list[str]) -> dict[str, Tensor]:
    """Tokens, padded to the longest line; padding is neither read nor predicted."""
    longest = max(len(line) for line in lines)
    tokens = torch.tensor([[*line.encode().ljust(longest, b"\0")] for line in lines])
    labels = tokens.masked_fill(tokens == 0, -100)
    return {"input_ids": tokens, "attention_mask": (tokens > 0).long(), "labels": labels}


def trainer(folder: str, updates: int, **changes: Any) -> SolverTrainer:
    """A trainer for `updates` updates of a new model; it saves every 40 updates."""
    set_seed(0)
    given: dict[str, Any] = {
        "max_steps": updates,
        "per_device_train_batch_size": 3,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
        "save_steps": 40,
        "logging_steps": 10,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    options = TrainingArguments(folder, **{**given, **changes})
    model: Any = LoopedLlamaForCausalLM(config())
    lines: Any = LINES
    return SolverTrainer(model, options, data_collator=collate, train_dataset=lines)


def main() -> None:
    """Train, resume, generate."""
    torch.set_num_threads(1)  # tensors this small gain nothing from a second
    with tempfile.TemporaryDirectory() as folder:
        trainer(folder, 40).train()
        trainer(folder, 80).train(resume_from_checkpoint=True)
        model: Any = LoopedLlamaForCausalLM.from_pretrained(f"{folder}/checkpoint-80")
    prompt = torch.tensor([[*b"Sparse is"]])
    for use_cache in (True, False):
        tokens = model.generate(prompt, max_new_tokens=30, do_sample=False, use_cache=use_cache)
        text, result = bytes(tokens[0].tolist()).decode(), model.equilibrium.stats.result
        print(f"{text} {use_cache=}, the last token's solve: {result}")


if __name__ == "__main__":
    main()
