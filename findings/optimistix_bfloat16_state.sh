#!/usr/bin/env bash
# optimistix.fixed_point and root finders on a state of bfloat16.
#
# Guess: they run in bfloat16 and stop at its precision. If something is unsupported, it is the gradient, because JAX
# factorizes matrices in float32 and float64 only.
# Seen (optimistix 0.1.0, equinox 0.13.8, jax 0.10.2, Python 3.11): FixedPointIteration raises ValueError in the
# forward pass: the error it keeps in the loop starts as float32 and becomes bfloat16, and JAX's loops need one type.
# So every 16-bit state raises (float16 as well), at any tolerance. In float32 the same call works, and a gradient of
# bfloat16 parameters works if f converts to float32 inside. jaxopt 0.8.5's FixedPointIteration takes the bfloat16
# state.
# What it means here: code from there iterates a float32 state around a cell in bfloat16, which state="exact" and
# state=torch.float32 do here. The state may be of bfloat16 as well.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet numpy==2.4.6 scipy==1.17.1 jax==0.10.2 jaxlib==0.10.2 equinox==0.13.8 \
    lineax==0.1.1 optimistix==0.1.0 jaxopt==0.8.5
JAX_PLATFORMS=cpu "$folder/env/bin/python" -W ignore - <<'PYTHON'
import jax
import jax.numpy as jnp
import jaxopt
import optimistix

w = 0.05 * jax.random.normal(jax.random.PRNGKey(0), (64, 64))
x = jax.random.normal(jax.random.PRNGKey(1), (8, 64))


def f(z, args):
    w, x = args
    return jnp.tanh(z @ w.T + x)


def solved(dtype, tol=2e-2):
    solver = optimistix.FixedPointIteration(rtol=tol, atol=tol)
    args = (w.astype(dtype), x.astype(dtype))
    return optimistix.fixed_point(f, solver, jnp.zeros((8, 64), dtype), args=args, max_steps=100).value


want = solved(jnp.float32, 1e-6)
for dtype in (jnp.bfloat16, jnp.float16):
    try:
        solved(dtype)
    except ValueError as error:
        assert "must have the same input and output structure" in str(error), error
        print(f"{jnp.dtype(dtype).name}: ValueError in the forward pass, about the relative_error of its loop")
    else:
        raise AssertionError(f"changed: FixedPointIteration takes a state of {dtype}")


def inside(z, args):
    return f(z.astype(jnp.bfloat16), args).astype(jnp.float32)


def loss(w):
    solver = optimistix.FixedPointIteration(rtol=2e-2, atol=2e-2)
    args = (w, x.astype(jnp.bfloat16))
    return (optimistix.fixed_point(inside, solver, jnp.zeros((8, 64)), args=args, max_steps=100).value ** 2).sum()


gradient = jax.grad(loss)(w.astype(jnp.bfloat16))
assert gradient.dtype == jnp.bfloat16 and jnp.isfinite(gradient).all(), "changed: f in bfloat16, state in float32"
solver = jaxopt.FixedPointIteration(f, maxiter=100, tol=2e-2)
found = solver.run(jnp.zeros((8, 64), jnp.bfloat16), (w.astype(jnp.bfloat16), x.astype(jnp.bfloat16))).params
off = float(jnp.abs(found.astype(jnp.float32) - want).max())
print(f"float32 state around a bfloat16 f: a gradient; jaxopt in bfloat16: {off:.3f} off")
assert found.dtype == jnp.bfloat16 and off < 0.05, "changed: jaxopt"
PYTHON
echo "as stated above"
