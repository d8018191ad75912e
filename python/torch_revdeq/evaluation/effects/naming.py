"""Names of tensors for errors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def name_of(tensor: Tensor, modules: Sequence[nn.Module]) -> str | None:
    """Where a module has this parameter or buffer, as "'layer.weight' in Module"; None: nowhere."""
    for module in modules:  # f itself comes before the modules in it
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            if value is tensor:
                return f"{name!r} in {type(module).__name__}"
    return None
