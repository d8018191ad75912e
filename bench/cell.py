"""`python -m bench.cell`: the equilibrium cell's time against its rows, and the roofline.

`forward` is a solve under no_grad, `train` one with the gradients of u, W and z0. Providers:
  eager      the loop that one would write, with a float32 state; autograd stores what it reads
  compile    the same under torch.compile
  solver     torch_revdeq.solve with an exact state, u given
  composite  linear_cell_forward and its backward, by matmuls and the half-step ops
  triton     the same in one launch each, where there is a GPU of its architectures
  gluon      the same by the warpgroup instructions of sm_90
The roofline is the larger of two times: the bytes that one launch moves (see linear_cell_forward)
at the speed of `copy_`, and its multiplications at that of a large matmul in W's dtype, both
measured in the same run. A provider whose results are off is not timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import revdeq_kernels as rk
from bench import machine, plot_cell, providers, timing
from bench.__main__ import OUT, device_argument
from bench.case import Call, Provider
from bench.harness import Record
from revdeq_kernels import cell_choice, digit_bytes
from torch_revdeq import solve

BETA, ACT = 0.5, "tanh"
PARTS = ("forward", "train")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
GPU_ROWS = tuple(2**k for k in range(10, 21))
CPU_ROWS = tuple(2**k for k in range(10, 14))
GATE_ROWS = 257


def frac_bits(w: Tensor) -> int:
    """Those that solve chooses for an f in w's dtype."""
    return 20 if w.dtype == torch.float32 else 16


Pair = tuple[Tensor, Tensor]
Solve = Callable[[Tensor, Tensor, Tensor, int], Pair]

# ---- the providers ---------------------------------------------------------------------------


def eager(u: Tensor, w: Tensor, z0: Tensor, steps: int) -> Pair:
    """The loop as one writes it."""
    y, z = z0, z0
    for _ in range(steps):
        y = torch.lerp(y, torch.tanh(F.linear(z.to(w.dtype), w) + u).float(), BETA)
        z = torch.lerp(z, torch.tanh(F.linear(y.to(w.dtype), w) + u).float(), BETA)
    return y, z


def by_solver(u: Tensor, w: Tensor, z0: Tensor, steps: int) -> Pair:
    """The general solver."""

    def f(z: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(F.linear(z.to(w.dtype), w) + u)

    solution = solve(f, z0, u, beta=BETA, max_steps=steps, frac_bits=frac_bits(w))
    return solution.y, solution.z


def by_op(implementation: str, u: Tensor, w: Tensor, z0: Tensor, steps: int) -> Pair:
    """One op for all steps."""
    options = {"frac_bits": frac_bits(w), "implementation": implementation}
    y, z, *_ = rk.linear_cell_forward(u, w, z0, BETA, steps, ACT, **options)
    return y, z


def solves(w: Tensor) -> dict[str, Solve]:
    """The providers that can run for such a cell."""
    found: dict[str, Solve] = {
        "eager": eager,
        "compile": providers.compiled(eager),  # type: ignore[dict-item]
        "solver": by_solver,
        "composite": partial(by_op, "composite"),
    }
    for name in ("triton", "gluon"):
        if w.device.type == "cuda" and cell_choice.why_not(name, w) is None:
            found[name] = partial(by_op, name)
    return found


def call_of(part: str, run: Solve, tensors: Sequence[Tensor], steps: int) -> Call:
    """A call that solves, and in `train` differentiates; its results are those to compare."""
    u, w, z0 = tensors

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return list(run(u, w, z0, steps))

    def train() -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        y, z = run(leaves[0], leaves[1], leaves[2], steps)
        return [y.detach(), z.detach(), *torch.autograd.grad([z], leaves, [torch.ones_like(z)])]

    return forward if part == "forward" else train


def refusal(part: str, run: Solve, tensors: Sequence[Tensor], steps: int) -> str | None:
    """Why a provider must not be timed: its results are off those of the composite.

    f rounded to w's dtype, as an eager f is, is a unit off in each of its three operations, in
    every half step, and an exact state three quarters of a step of its grid; a cell that contracts
    halves what came before.
    """
    few = [tensors[0][:GATE_ROWS], tensors[1], tensors[2][:GATE_ROWS]]
    bound = 2 * 3 * torch.finfo(few[1].dtype).eps + 4 * 2.0 ** -frac_bits(few[1])
    try:
        got: list[Tensor] = call_of(part, run, few, steps)()  # type: ignore[assignment]
        composite = partial(by_op, "composite")
        want: list[Tensor] = call_of(part, composite, few, steps)()  # type: ignore[assignment]
    except Exception as error:  # it is printed, stored, and fails the run
        return f"{type(error).__name__}: {error}"
    for a, b in zip(got, want, strict=True):
        off = float((a.float() - b.float()).norm() / b.float().norm())
        if not off <= bound:
            return f"results are {off:.2g} off the composite's, {bound:.2g} are explained"
    return None


# ---- the roofline ----------------------------------------------------------------------------


def work(part: str, u: Tensor, z0: Tensor, steps: int) -> tuple[int, int]:
    """Bytes and multiply-adds, counted as two operations, of one launch that does the part."""
    digits = digit_bytes(z0.numel(), BETA) * 2 * steps
    forward = u.nbytes + z0.nbytes + 2 * z0.nbytes + 2 * z0.nbytes + digits
    operations = 2 * steps * 2 * z0.numel() * z0.shape[1]
    if part == "forward":
        return forward, operations
    back = 4 * z0.nbytes + 2 * u.nbytes + 2 * z0.nbytes + digits
    return forward + back, operations + 3 * operations  # W s again, g W, and g s for W


def ceilings(device: torch.device, dtype: torch.dtype, seconds: float) -> tuple[float, float]:
    """Bytes a second of `copy_`, and operations a second of a large matmul."""
    size, side = (2**28, 8192) if device.type == "cuda" else (2**25, 1024)
    copied = providers.copy_tensors(size, device)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    calls: list[tuple[Call, float]] = [
        (providers.bind_copy(copied), float(size)),
        (partial(torch.mm, a, b), 2.0 * side**3),
    ]
    return tuple(amount / median(call, device, seconds) for call, amount in calls)  # type: ignore[return-value]


def median(call: Call, device: torch.device, seconds: float) -> float:
    """Seconds of one call."""
    alone = contender("", call)
    clock = timing.CLOCKS[device.type]
    timing.race([alone], clock, rounds=3, minimum=seconds, on_sample=lambda: None)
    return timing.quantile(alone.samples, 0.5)


def contender(name: str, call: Call) -> timing.Contender:
    """A call with a name, to be timed."""
    return timing.Contender(Provider(name, "revdeq", lambda _: call, lambda _: call), [call])


# ---- the command -----------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.cell", description=__doc__)
    parser.add_argument("--rows", nargs="*", type=int, help="default: 2^10 to 2^20, on a CPU 2^13")
    parser.add_argument("--features", nargs="*", type=int, default=[64, 128])
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of u and W")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--providers", nargs="*", default=[], help="names; default: all that can")
    parser.add_argument("--device", type=device_argument, help="cpu, cuda or cuda:N")
    parser.add_argument("--quick", action="store_true", help="a look, not a measurement")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    return parser.parse_args(arguments)


def measure(
    part: str, features: int, rows: int, chosen: argparse.Namespace, limits: tuple[float, float]
) -> list[Record]:
    """One record for each provider, in turns."""
    device, dtype, steps = chosen.device, DTYPES[chosen.dtype], chosen.steps
    w = (torch.randn(features, features, device=device) * 0.4 / features**0.5).to(dtype)
    u, z0 = torch.randn(rows, features, device=device), torch.zeros(rows, features, device=device)
    tensors = (u.to(dtype), w, z0)
    torch.compiler.reset()
    moved, operations = work(part, tensors[0], z0, steps)
    floor = max(moved / limits[0], operations / limits[1])
    about = {"part": part, "features": features, "rows": rows, "dtype": chosen.dtype}
    about |= {"steps": steps, "act": ACT, "beta": BETA, "bytes": moved, "operations": operations}
    about |= {"copy_bytes_per_s": limits[0], "matmul_flops": limits[1], "roofline_s": floor}
    records: list[Record] = []
    contenders: dict[int, timing.Contender] = {}
    for name, run in solves(w).items():
        if chosen.providers and name not in chosen.providers:
            continue
        reason = refusal(part, run, tensors, steps)
        if reason is None:
            call = call_of(part, run, tensors, steps)
            contenders[len(records)] = contender(name, call)
        records.append(about | {"provider": name, "refused": reason, "median_s": None})
    rounds, minimum = (3, 0.01) if chosen.quick else (5, 0.1)
    clock = timing.CLOCKS[device.type]
    together = list(contenders.values())
    timing.race(together, clock, rounds=rounds, minimum=minimum, on_sample=lambda: None)
    for place, timed in contenders.items():
        for key, fraction in (("median_s", 0.5), ("p20_s", 0.2), ("p80_s", 0.8)):
            records[place][key] = timing.quantile(timed.samples, fraction)
    return records


def print_table(console: Console, records: Sequence[Record]) -> None:
    """Times, and how many times the roofline they are."""
    columns = ("part", "features", "rows", "provider", "time", "of the roofline")
    table = Table(*columns)
    for r in records:
        seconds = r["median_s"]
        time = r["refused"] if seconds is None else f"{seconds * 1e6:.1f} us"
        times = "" if seconds is None else f"{seconds / r['roofline_s']:.1f}x"
        table.add_row(r["part"], str(r["features"]), str(r["rows"]), r["provider"], time, times)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, store, print and draw; 1 where a provider was refused, else 0."""
    chosen = parse(arguments)
    chosen.device = chosen.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = chosen.rows or (GPU_ROWS if chosen.device.type == "cuda" else CPU_ROWS)
    limits = ceilings(chosen.device, DTYPES[chosen.dtype], 0.01 if chosen.quick else 0.1)
    facts = machine.facts(chosen.device)
    chosen.out.mkdir(parents=True, exist_ok=True)
    results = chosen.out / "cell.jsonl"
    records: list[Record] = []
    with results.open("w", encoding="utf-8") as file:
        for features in chosen.features:
            for part in PARTS:
                for count in rows:
                    new = [r | facts for r in measure(part, features, count, chosen, limits)]
                    file.writelines(json.dumps(record) + "\n" for record in new)
                    file.flush()
                    records += new
    console = Console(width=None if sys.stdout.isatty() else 120)
    print_table(console, records)
    picture = chosen.out / "cell.png"
    plot_cell.draw(records, picture)
    console.print(f"written: {results}, {picture}", highlight=False, soft_wrap=True)
    return 1 if any(record["refused"] for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
