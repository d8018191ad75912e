"""A solve while a CUDA graph is captured: nothing may depend on values on the device.

A replay runs the kernels of one solve again with other data, but none of its Python code. So the
number of steps, the fractional bits and the random seeds must be known beforehand, and checks are
read on demand.
"""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor

from revdeq_kernels.core.capture import capturing

__all__ = ["capturing", "check_capture"]


def check_capture(
    tol: Any,
    frac_bits: int | None,
    beta: Any,
    rng: str,
    max_steps: Any,
    *,
    exact: bool,
    on_step: Any = None,
) -> None:
    """ValueError, by name, for options that a graph cannot hold."""
    if callable(max_steps):
        _refuse("max_steps", "an integer", "a function", "a replay takes the steps of the capture")
    if tol is not None:
        _refuse("tol", "None", tol, "the number of steps cannot depend on the data")
    if on_step is not None:
        _refuse("on_step", "None", "a function", "a replay does not call it; pass trace=True")
    if exact and frac_bits is None:
        remedy = "pass an integer, such as stats.frac_bits of a solve outside the graph"
        _refuse("frac_bits", "an integer for an exact state", "'auto'", remedy)
    if exact and isinstance(beta, Tensor) and beta.device.type != "cpu":
        _refuse("beta", "numbers for an exact state", "a tensor on the device", "pass float(beta)")
    if rng != "none":
        remedy = "random numbers are not replayed: pass rng='none' if f draws none"
        _refuse("rng", "'none'", repr(rng), remedy)


def _refuse(name: str, expected: str, got: Any, remedy: str) -> NoReturn:
    raise ValueError(
        f"{name}: expected {expected} while a CUDA graph is captured, got {got}; {remedy}"
    )
