"""The float32 multiply-adds that the cores of a CPU issue in a second: the peak of its arithmetic.

By a loop in registers (fma.c), which a C compiler makes for this machine. A large matmul comes near
to it where its library is tuned for the processor, and stays far below where it is not.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

SOURCE = Path(__file__).with_name("fma.c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC")
# Of the loop in one call: some milliseconds.
ROUNDS = 10**6

Loop = Callable[[], int]


@cache
def loop() -> Loop | None:
    """Runs the loop in the calling thread, and returns its operations; None without a compiler.

    Multiplying and adding are two operations.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        return None
    with TemporaryDirectory() as folder:
        library = Path(folder) / "fma.so"
        command = [*compiler, *FLAGS, str(SOURCE), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            multiply_add = ctypes.CDLL(str(library)).multiply_add
        except (OSError, subprocess.SubprocessError):
            return None
    multiply_add.restype = ctypes.c_longlong
    multiply_add.argtypes = (ctypes.c_longlong, ctypes.POINTER(ctypes.c_float))
    return lambda: multiply_add(ROUNDS, ctypes.byref(ctypes.c_float()))


def on_threads(run: Loop, pool: ThreadPoolExecutor, threads: int) -> Callable[[], int]:
    """A call that runs the loop in so many threads of `pool` at once; all operations of them."""
    return lambda: sum(future.result() for future in [pool.submit(run) for _ in range(threads)])
