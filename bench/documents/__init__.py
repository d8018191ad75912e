"""What the documents say in figures, made from `bench/results/`: `bench/readme.py` puts it there.

`stored.py` reads the results. Of the tables `ops.py` makes those of the ops, `solver.py` those of
the solver, and `kernels.py` those of docs/kernels.md, which also holds what a build has recorded.
"""
