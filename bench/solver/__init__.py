"""What a solve and its gradient cost against the number of steps: `python -m bench.solver`.

`models.py` holds the maps that are solved, `methods.py` the ways to differentiate the solve,
`peers.py` those of others, of which `jax_peer.py` runs the JAX library by `jax_worker.py`;
`measure.py` the figures of one of them, `memory.py` the count of bytes. `report.py` prints the
stored lines, `figures.py` draws them. `profiling.py` says where the time of a step went:
`ranges.py` names what runs, `attribution.py` reads the trace.
"""
