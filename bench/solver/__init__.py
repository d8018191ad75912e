"""What a solve and its gradient cost against the number of steps, and what they leave room for.

`plan.py` says what each benchmark measures, `run.py` is what `python -m bench` calls. `maps.py`
holds the maps that are solved and `models.py` their tensors; `methods.py` the ways to
differentiate the solve, `bare.py` the one without the solver, `peers.py` those of others, of which
`jax_peer.py` runs the JAX library by `jax_worker.py`. `measure.py` takes the figures of one of
them, `fresh.py` counts bytes in another process, and `largest.py` looks for what fits.
"""
