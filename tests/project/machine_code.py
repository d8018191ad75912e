"""Machine code as cuobjdump prints it, for tests of the tools that read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def sass(arch: str, instructions: Mapping[str, Sequence[str]]) -> str:
    """Functions that consist of these instructions, 16 bytes apart from address 0 on."""
    text = f"\n\tcode for {arch}\n"
    for name, lines in instructions.items():
        text += f'\t\tFunction : {name}\n\t.headerflags\t@"EF_CUDA_TEXMODE_UNIFIED"\n'
        for k, line in enumerate(lines):
            text += f"        /*{16 * k:04x}*/     {line} ;      /* 0x000000 */\n"
            text += "                                       /* 0x000000 */\n"
    return text
