"""Benchmarks: `python -m bench` runs them, `bench/README.md` says how to read the figures.

`case.py` holds what a benchmark file hands over, `harness.py` runs it; every file of
`bench/benchmarks/` with a function `cases` is one benchmark.
`report.py` and `table.py` print the stored lines, `plot.py` draws them, `html.py` makes a page of
them, `compare.py` holds them to those of an earlier run.
"""
