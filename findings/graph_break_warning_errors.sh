#!/usr/bin/env bash
# torch.compile of a function with a graph break, where Python's warnings are errors (-W error, pytest's
# filterwarnings = error), and a tensor with a history crosses the break.
#
# Guess: it compiles. What the compiler looks at is its own affair, and it hides the warnings that this raises.
# Seen (torch 2.13.0, CPU, Python 3.11): the call raises InternalTorchDynamoError, "UserWarning: The .grad attribute of
# a Tensor that is not a leaf Tensor is being accessed", each time. The compiler asks whether the tensor has a .grad
# while it replaces warnings.showwarning, which a filter that turns warnings into errors never reaches. A tensor without
# a history across the break, and warnings that are not errors, compile.
# What it means here: a solve that breaks the graph returns such a tensor, so a test of that lets this warning pass.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/program.py" <<'PYTHON'
import sys
import warnings

import torch


@torch.compiler.disable
def outside(x):
    return x * 2 if sys.argv[1] == "history" else x.detach() * 2


def compiled(x):
    return torch.compile(lambda x: outside(x) + 1, backend="eager")(x).tolist()


x = torch.ones(2, requires_grad=True)
assert torch.__version__.startswith("2.13.0"), torch.__version__
warnings.simplefilter(sys.argv[2])
for _ in range(2):
    torch._dynamo.reset()
    try:
        print(compiled(x))
    except torch._dynamo.exc.InternalTorchDynamoError as error:
        print(type(error).__name__, ".grad attribute" in str(error))
PYTHON
run() { "$folder/env/bin/python" "$folder/program.py" "$@" 2> /dev/null; }
computed=$'[3.0, 3.0]\n[3.0, 3.0]'
[ "$(run leaf error)" = "$computed" ]
[ "$(run history ignore)" = "$computed" ]
[ "$(run history error)" = $'InternalTorchDynamoError True\nInternalTorchDynamoError True' ]
echo "as seen: where warnings are errors, a tensor with a history that crosses a graph break is one"
