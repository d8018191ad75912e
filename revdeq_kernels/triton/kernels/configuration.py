"""How the equilibrium cell is divided among programs."""

from __future__ import annotations

from typing import NamedTuple

REGISTERS, MOST_REGISTERS = 65536, 255
"""Per multiprocessor, and the maximum per thread."""


class Configuration(NamedTuple):
    """How a cell is divided: rows per tile, warps per program, programs per multiprocessor.

    `exact` and `float32` are the numbers of programs that fit on a multiprocessor at once, for the
    forward and the backward pass; tools/aot asserts that exactly that many fit.
    """

    tile: int
    warps: int
    exact: tuple[int, int]
    float32: tuple[int, int]

    def programs(self, exact: bool, back: bool) -> int:
        """The number that fit on a multiprocessor at once."""
        return (self.exact if exact else self.float32)[back]

    def options(self, exact: bool, back: bool) -> dict[str, int]:
        """The compiler options: as many registers as allow the programs to fit.

        Without a limit, ptxas may spill in order to use fewer.
        """
        threads = 32 * self.warps * self.programs(exact, back)
        registers = min(REGISTERS // threads // 8 * 8, MOST_REGISTERS)
        return {"num_warps": self.warps, "num_stages": 1, "maxnreg": registers}
