"""Compiled kernels executed on a CPU: PTX on NumPy arrays, an element for each thread.

``kernel.py`` reads the text, ``machine.py`` runs it, ``instructions/`` holds a function for each
instruction. What a kernel must not do raises `Fault`; what is not modeled raises `Missing`.
"""

from __future__ import annotations
