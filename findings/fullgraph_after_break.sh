#!/usr/bin/env bash
# torch.compile(fullgraph=True) of what was compiled before, with a graph break.
#
# Guess: fullgraph=True raises at a graph break, whatever ran before.
# Seen (torch 2.13.0, Python 3.11): it raises in a fresh process. Where the same code was compiled earlier without
# fullgraph=True for the same backend (this model, another object of its class, or a function that calls it), the call
# takes the cached frames, with their graph break, and says nothing. The cache is looked up by code, guards and backend;
# fullgraph is none of them. For another backend, or after torch.compiler.reset(), it raises.
# What it means here: fullgraph=True is no proof that a solve is one operator of a graph unless nothing was compiled
# before; the tests that expect the solver's refusal reset the compiler first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/compiled.py" <<'PYTHON'
import torch
from torch import nn
from torch._dynamo.exc import Unsupported


@torch.compiler.disable
def outside(x):
    return x + 1


class Model(nn.Module):
    def forward(self, x):
        return 3 * outside(2 * x)


def caller(model, x):
    return model(x) + 1


def raises(before):
    """Whether fullgraph=True does, after something else was compiled."""
    torch.compiler.reset()
    model, x = Model(), torch.ones(2)
    before(model, x)
    try:
        torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    except Unsupported:
        return True
    return False


found = {
    "nothing": raises(lambda model, x: None),
    "the model": raises(lambda model, x: torch.compile(model, backend="aot_eager")(x)),
    "another of its class": raises(lambda model, x: torch.compile(Model(), backend="aot_eager")(x)),
    "what calls it": raises(lambda model, x: torch.compile(caller, backend="aot_eager")(model, x)),
    "the model, by another backend": raises(lambda model, x: torch.compile(model, backend="eager")(x)),
}
for what, does in found.items():
    print(f"compiled before: {what}: fullgraph=True {'raises' if does else 'runs, with a graph break'}")
assert [*found.values()] == [True, False, False, False, True], "changed"
PYTHON
"$folder/env/bin/python" "$folder/compiled.py"
echo "as stated above"
