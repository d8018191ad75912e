"""The paper authors' JAX library on one problem: `python jax_worker.py FOLDER`, for `jax_peer.py`.

A script for an interpreter that has jax, equinox and revdeq; it needs neither torch nor this
project. It reads FOLDER/problem.npz, compiles the train step, writes FOLDER/gradients.npz and
answers with one line of JSON. Then it answers every line {"seconds": S} with the time of one call.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What each of them is called in the messages, and `import` takes.
NEEDED = ("numpy", "jax", "equinox", "revdeq")
# Their loop runs while error > tol, from an error of 2 tol: with tol 0 it would take no step.
NEVER = 1e-30


def mlp(jax: Any, problem: dict[str, Any], weights: dict[str, Any], z: Any, x: Any) -> Any:
    """The MLP of maps.py."""
    h = z + x
    for index in range(sum(name.endswith(".weight") for name in weights)):
        h = linear(weights, f"layers.{index}", h if index == 0 else gelu(jax, h))
    return h


def block(jax: Any, problem: dict[str, Any], weights: dict[str, Any], z: Any, x: Any) -> Any:
    """The transformer block of maps.py."""
    h = z + x
    batch, sequence, dim = h.shape
    heads = problem["heads"]
    qkv = linear(weights, "qkv", normalised(jax, weights, "before_attention", h))
    q, k, v = jax.numpy.moveaxis(qkv.reshape(batch, sequence, 3, heads, dim // heads), 2, 0)
    mixed = jax.nn.dot_product_attention(q, k, v)
    h = h + linear(weights, "out", mixed.reshape(batch, sequence, dim))
    up = linear(weights, "up", normalised(jax, weights, "before_mlp", h))
    h = h + linear(weights, "down", gelu(jax, up))
    return normalised(jax, weights, "end", h)


def language(jax: Any, problem: dict[str, Any], weights: dict[str, Any], z: Any, x: Any) -> Any:
    """The paper's language block, of maps.py."""
    batch, sequence, dim = z.shape
    heads = problem["heads"]
    outer = linear(weights, "outer", normalised(jax, weights, "before_attention", z + x))
    q, k, v = (
        linear(weights, f"qkv.{i}", part).reshape(batch, sequence, heads, dim // heads)
        for i, part in enumerate(jax.numpy.split(outer, 3, axis=-1))
    )
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    h = z + linear(weights, "out", mixed.reshape(batch, sequence, dim))
    up = gelu(jax, linear(weights, "up", normalised(jax, weights, "before_mlp", h)))
    return h + linear(weights, "down", gelu(jax, linear(weights, "middle", up)))


def vision(jax: Any, problem: dict[str, Any], weights: dict[str, Any], z: Any, x: Any) -> Any:
    """The paper's vision block, of maps.py."""

    def convolved(i: int, h: Any) -> Any:
        weight = weights[f"convolutions.{i}.weight"]
        return jax.lax.conv_general_dilated(h, weight, (1, 1), "SAME")

    def grouped(i: int, h: Any) -> Any:
        groups = h.reshape(h.shape[0], problem["groups"], -1)
        groups = groups - groups.mean(-1, keepdims=True)
        scale = jax.lax.rsqrt((groups**2).mean(-1, keepdims=True) + 1e-5)
        weight, bias = (weights[f"norms.{i}.{name}"][:, None, None] for name in ("weight", "bias"))
        return (groups * scale).reshape(h.shape) * weight + bias

    relu = jax.nn.relu
    h = convolved(1, relu(grouped(0, convolved(0, z))))
    return grouped(2, relu(z + grouped(1, x + h)))


def cell(jax: Any, problem: dict[str, Any], weights: dict[str, Any], z: Any, x: Any) -> Any:
    """A `torch_revdeq.LinearCell` with tanh."""
    return jax.numpy.tanh(z @ weights["W"].T + x @ weights["U"].T + weights["b"])


MAPS = {"mlp": mlp, "block": block, "language": language, "vision": vision, "cell": cell}


def linear(weights: dict[str, Any], name: str, h: Any) -> Any:
    """As nn.Linear keeps its weight."""
    return h @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(jax: Any, h: Any) -> Any:
    """By erf, as torch's."""
    return jax.nn.gelu(h, approximate=False)


def normalised(jax: Any, weights: dict[str, Any], name: str, h: Any) -> Any:
    """LayerNorm with torch's eps."""
    centred = h - h.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred * scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def step_of(modules: dict[str, Any], problem: dict[str, Any]) -> Callable[..., Any]:
    """The train step: the gradients of the weights and the number of steps that were taken.

    f computes in float32. A wider state is rounded to it where f reads it, as the authors do.
    """
    jax, equinox, revdeq = (modules[name] for name in ("jax", "equinox", "revdeq"))

    def f(weights: dict[str, Any], z: Any, x: Any) -> Any:
        narrow = z.astype(x.dtype)
        return MAPS[problem["model"]](jax, problem, weights, narrow, x).astype(z.dtype)

    def step(weights: dict[str, Any], z0: Any, x: Any, cotangent: Any) -> Any:
        def solved(function: Any) -> tuple[Any, Any]:
            solution = revdeq.solve(
                function,
                z0,
                x,
                revdeq.Reversible(problem["beta"]),
                revdeq.ReversibleAdjoint(),
                NEVER,
                problem["steps"],
            )
            return solution.z1, solution.steps

        function = jax.tree_util.Partial(f, weights)
        _, pull, steps = equinox.filter_vjp(solved, function, has_aux=True)
        return pull(cotangent)[0].args[0], steps

    return step


def prepare(
    modules: dict[str, Any], folder: Path, problem: dict[str, Any]
) -> tuple[dict[str, Any], Callable[[], Any]]:
    """Compile, check and store the gradients: the answer, and the call to take the time of."""
    jax, numpy = modules["jax"], modules["numpy"]
    jax.config.update("jax_enable_x64", problem["state"] == "float64")
    jax.config.update("jax_default_matmul_precision", "highest")
    device = jax.devices()[problem["index"]]
    jax.config.update("jax_default_device", device)
    with numpy.load(folder / "problem.npz") as stored:
        arrays = {name: jax.device_put(stored[name], device) for name in stored}
    weights = {
        name.removeprefix("parameter "): array
        for name, array in arrays.items()
        if name.startswith("parameter ")
    }
    state = jax.numpy.dtype(problem["state"])
    z0, cotangent = (arrays[name].astype(state) for name in ("z0", "cotangent"))
    inputs = weights, z0, arrays["x"], cotangent
    start = time.perf_counter()
    compiled = jax.jit(step_of(modules, problem)).lower(*inputs).compile()
    seconds = time.perf_counter() - start
    gradients, steps = compiled(*inputs)
    if int(steps) != problem["steps"]:
        raise RuntimeError(f"expected {problem['steps']} steps, the library took {int(steps)}")
    numpy.savez(folder / "gradients.npz", **gradients)
    memory = compiled.memory_analysis()
    answer = {
        "compile_seconds": seconds,
        "peak_bytes": memory and memory.temp_size_in_bytes + memory.output_size_in_bytes,
        "state": str(z0.dtype),
        "platform": device.platform,
    }
    return answer, lambda: compiled(*inputs)


def sample(modules: dict[str, Any], call: Callable[[], Any], minimum: float, count: int) -> Any:
    """Seconds per call of a loop that lasted `minimum` or more, and its number of calls.

    On a CPU every call is waited for, on a GPU the last one: as torch's are, there and here.
    """
    block = modules["jax"].block_until_ready
    on_cpu = modules["jax"].default_backend() == "cpu"
    while True:
        start = time.perf_counter()
        for _ in range(count):
            result = call()
            if on_cpu:
                block(result)
        block(result)
        seconds = time.perf_counter() - start
        if seconds >= minimum:
            return {"seconds": seconds / count, "count": count}
        count = max(count + 1, int(1.1 * minimum / max(seconds, 1e-9) * count) + 1)


def main() -> None:
    """Answer until there are no more questions."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=answers, flush=True)

    folder = Path(sys.argv[1])
    problem = json.loads((folder / "problem.json").read_text(encoding="utf-8"))
    os.environ["JAX_PLATFORMS"] = problem["device"]
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if problem["threads"] is not None and hasattr(os, "sched_setaffinity"):
        # XLA has no setting for it, and takes as many threads as there are cores for it.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: problem["threads"]])
    try:
        modules = {name: importlib.import_module(name) for name in NEEDED}
        _ = modules["revdeq"].ReversibleAdjoint
        modules["jax"].devices()  # a RuntimeError where there is none of this kind
    except (ImportError, AttributeError, RuntimeError) as error:
        answer({"skipped": f"{type(error).__name__}: {error}"})
        return
    ready, call = prepare(modules, folder, problem)
    versions = importlib.import_module("importlib.metadata").version
    answer(ready | {"library": ", ".join(f"{name} {versions(name)}" for name in NEEDED)})
    count = 1
    for line in sys.stdin:
        taken = sample(modules, call, json.loads(line)["seconds"], count)
        count = taken["count"]
        answer(taken)


if __name__ == "__main__":
    main()
