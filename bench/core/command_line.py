"""The parser of every command here: a wrong choice is answered in one line."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse's own answer repeats the whole usage, in which the error is the last line."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"{self.prog}: {message}; --help lists the options\n")
