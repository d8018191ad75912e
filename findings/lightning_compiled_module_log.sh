#!/usr/bin/env bash
# torch.compile(module) of a LightningModule whose training_step calls self.log, given to Trainer.fit.
#
# Guess: it trains, with a graph break at self.log at most: Lightning documents torch.compile(module), and the compiler
# falls back to Python for what it cannot trace.
# Seen (lightning 2.6.6, torch 2.13.0, CPU, Python 3.11): InternalTorchDynamoError, "'method' object has no attribute
# '__dict__'". self.log asks inspect.getfullargspec about the bound training_step, which Dynamo traces into and fails
# on with an internal error, and of those it does not fall back. Without self.log the same module trains; so it does
# where the layers inside of it are compiled.
# What it means here: the page for Lightning says to compile the cell.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 lightning==2.6.6
cd "$folder"
"$folder/env/bin/python" - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import lightning as L
import torch
from torch import nn


class Module(L.LightningModule):
    def __init__(self, logs):
        super().__init__()
        self.net, self.logs = nn.Linear(4, 1), logs

    def training_step(self, batch, index):
        loss = self.net(batch).square().mean()
        if self.logs:
            self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def outcome(module):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", max_steps=2, enable_model_summary=False, **quiet)
    try:
        trainer.fit(module, torch.utils.data.DataLoader(torch.randn(8, 4), 4))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return f"trains, {trainer.global_step} updates"


inside = Module(logs=True)
inside.net.compile(backend="eager")
found = {
    "compiled, no log": outcome(torch.compile(Module(logs=False), backend="eager")),
    "compiled, with log": outcome(torch.compile(Module(logs=True), backend="eager")),
    "a layer compiled, with log": outcome(inside),
}
print(*(f"{case}: {result}" for case, result in found.items()), sep="\n")
assert found["compiled, no log"] == "trains, 2 updates", "changed: another outcome without a log"
assert found["a layer compiled, with log"] == "trains, 2 updates", "changed: a layer cannot be compiled"
assert found["compiled, with log"].startswith("InternalTorchDynamoError"), "changed: it trains"
PYTHON
echo "as stated above"
