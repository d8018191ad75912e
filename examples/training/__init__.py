"""What ``train_lm.py`` and ``train_image.py`` share: one story to a file."""

from __future__ import annotations

import importlib.util

MISSING = [
    name for name in ("rich", "safetensors", "tyro") if importlib.util.find_spec(name) is None
]
if MISSING:
    raise ModuleNotFoundError(
        f"the examples need {', '.join(MISSING)}: pip install '.[examples]' in the clone"
    )
