"""A solve while a CUDA graph is captured: nothing may depend on what the device has computed.

A replay runs the kernels of one solve again on other numbers, and none of its Python. So the number
of steps, the fractional bits and the seeds of random numbers must be known beforehand, and checks
are read when somebody asks for them.
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
    """Refuse options that a graph cannot hold: ValueError, by name."""
    if callable(max_steps):
        _refuse("max_steps", "an integer", "a function", "a replay takes the steps of the capture")
    if tol is not None:
        _refuse("tol", "None", tol, "the number of steps cannot depend on the data")
    if on_step is not None:
        _refuse("on_step", "None", "a function", "a replay does not call it; pass trace=True")
    if exact and frac_bits is None:
        remedy = "pass an integer, such as stats.frac_bits of a solve outside of the graph"
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
