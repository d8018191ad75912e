#!/usr/bin/env bash
# Two models of one transformers config object, the first of them given to a Trainer; then both generate.
#
# Guess: both use a cache of keys and values, as a new model does. Trainer's use_cache=False is for training, and for
# the model that it was given.
# Seen (transformers 5.24.0, torch 2.13.0, CPU, Python 3.11): Trainer.__init__ writes use_cache=False into the config
# object, and nothing undoes it. The model that it was given generates with a cache all the same, for its
# generation_config was made before; a model made of that config afterwards has a generation_config with
# use_cache=False and computes all tokens again for each new one, without a word.
# What it means here: examples/trainers/hf_trainer.py makes a config for every model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0
cd "$folder"
"$folder/env/bin/python" - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments


def lengths(model):
    """How many tokens each call of the model computes."""
    seen = []
    layer = model.model.layers[0]
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    model.eval().generate(torch.arange(2, 8)[None], max_new_tokens=4, do_sample=False)
    hook.remove()
    return seen


sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
config = LlamaConfig(vocab_size=64, eos_token_id=None, bos_token_id=None, pad_token_id=0, **sizes)
before = LlamaForCausalLM(config)
Trainer(before, TrainingArguments("run", report_to="none", use_cpu=True))
after = LlamaForCausalLM(config)
print("made before the Trainer:", lengths(before), "made after it:", lengths(after))
assert lengths(before) == [6, 1, 1, 1], "changed: the model that was given to the Trainer has no cache"
assert lengths(after) == [6, 7, 8, 9], "changed: a model made afterwards has a cache"
PYTHON
echo "as stated above"
