"""Benchmarks: `python -m bench` runs them, `bench/README.md` says how to read the figures.

`case.py` holds what a benchmark file hands over, `harness.py` runs it; every file of
`bench/benchmarks/` with a function `cases` is one benchmark.
"""
