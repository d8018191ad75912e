#!/usr/bin/env bash
# jax.checkpoint around the body of a jax.lax.scan, in jit, and two kinds of equinox.internal.while_loop: which
# bits the state and the gradient of one loop have.
#
# Guess: recomputing changes no bit. The body is the same, so all kinds have the scan's state, and the gradient is the
# scan's by jax.checkpoint and for every number of checkpoints; scan's unroll changes no bit either.
# Seen (jax 0.10.2, equinox 0.13.8, CPU, Python 3.11): kind="checkpointed" has the bits of the plain scan in state and
# gradient, with 2, 5 or 24 checkpoints. jax.checkpoint has the scan's state and another gradient (3320 of 4096
# elements, 2e-7 relative). kind="bounded" has another state already (1226 of 2048 elements), and unroll=4 the same
# state and another gradient. The functions are the same; what XLA compiles around and into their body is not.
# What it means here: in JAX "recomputed" is not "with the same bits"; compare with the authors' library by tolerance.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 equinox==0.13.8 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PYTHON'
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np

STEPS = 24
weight = 0.1 * jax.random.normal(jax.random.PRNGKey(0), (64, 64))
x = jax.random.normal(jax.random.PRNGKey(1), (32, 64))


def step(state, weight):
    y, z = state
    y = 0.8 * y + 0.2 * jnp.tanh(z @ weight + x)
    return y, 0.8 * z + 0.2 * jnp.tanh(y @ weight + x)


def scan(weight, wrap=lambda body: body, unroll=1):
    body = wrap(lambda state, _: (step(state, weight), None))
    return jax.lax.scan(body, (jnp.zeros_like(x),) * 2, None, length=STEPS, unroll=unroll)[0]


def loop(weight, **kind):
    def body(carry):
        count, state, weight = carry
        return count + 1, step(state, weight), weight

    start = (0, (jnp.zeros_like(x),) * 2, weight)
    return eqxi.while_loop(lambda carry: carry[0] < STEPS, body, start, max_steps=STEPS, **kind)[1]


def run(solve, **options):
    def loss(weight):
        state = solve(weight, **options)[1]
        return (state**2).sum(), state

    (_, state), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(weight)
    return np.asarray(state), np.asarray(gradient)


want = run(scan)
found = {
    "jax.checkpoint": run(scan, wrap=jax.checkpoint),
    "unroll=4": run(scan, unroll=4),
    "bounded": run(loop, kind="bounded"),
    **{f"{n} checkpoints": run(loop, kind="checkpointed", checkpoints=n) for n in (2, 5, 24)},
}
for name, pair in found.items():
    state, gradient = (int((a != b).sum()) for a, b in zip(pair, want, strict=True))
    off = np.linalg.norm(pair[1] - want[1]) / np.linalg.norm(want[1])
    print(f"{name}: {state} of {want[0].size} elements of the state differ, {gradient} of {want[1].size} of the "
          f"gradient ({off:.0e} relative)")
    assert off < 1e-5
    if name.endswith("checkpoints"):
        assert state == gradient == 0, f"changed: {name}"
    else:
        assert (state > 0) == (name == "bounded") and gradient > 0, f"changed: {name}"
PYTHON
echo "as stated above"
