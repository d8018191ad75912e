"""Machine code in the format of cuobjdump, for tests of the tools that parse it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def sass(arch: str, instructions: Mapping[str, Sequence[str]]) -> str:
    """Functions with these instructions, 16 bytes apart, starting at address 0."""
    text = f"\n\tcode for {arch}\n"
    for name, lines in instructions.items():
        text += f'\t\tFunction : {name}\n\t.headerflags\t@"EF_CUDA_TEXMODE_UNIFIED"\n'
        for k, line in enumerate(lines):
            text += f"        /*{16 * k:04x}*/     {line} ;      /* 0x000000 */\n"
            text += "                                       /* 0x000000 */\n"
    return text
