"""Execute compiled kernels on a CPU: PTX on NumPy arrays with one element per thread.

``kernel.py`` parses the text, ``machine.py`` runs it, and ``instructions/`` has one function per
instruction. Illegal behavior of a kernel raises `Fault`; unmodeled instructions raise `Missing`.
"""

from __future__ import annotations
