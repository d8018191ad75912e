"""The signals that runs are sent."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from training.interruption import SIGNALS


@pytest.fixture(autouse=True)
def handlers_of_a_foreground_process() -> Iterator[None]:
    """Python's own handlers, even where the tests run in the background and SIGINT is ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
