"""How the equilibrium cell is taken apart among programs."""

from __future__ import annotations

from typing import NamedTuple

REGISTERS, MOST_REGISTERS = 65536, 255
"""Those of a processor, and the most that a thread can have."""


class Configuration(NamedTuple):
    """How a cell is taken apart: rows of a tile, warps of a program, programs of a processor.

    Of these as many as it holds at once, forward and back, of an exact state and of a float one:
    tools/aot asserts that no more and no fewer fit.
    """

    tile: int
    warps: int
    exact: tuple[int, int]
    float32: tuple[int, int]

    def programs(self, exact: bool, back: bool) -> int:
        """Those that a processor holds at once."""
        return (self.exact if exact else self.float32)[back]

    def options(self, exact: bool, back: bool) -> dict[str, int]:
        """The compiler's: as many registers as let the programs fit.

        ptxas, not told how many there are, may spill to use fewer.
        """
        threads = 32 * self.warps * self.programs(exact, back)
        registers = min(REGISTERS // threads // 8 * 8, MOST_REGISTERS)
        return {"num_warps": self.warps, "num_stages": 1, "maxnreg": registers}
