"""What is shown of stored lines: tables, figures, the page, and the figures of the documents.

`families.py` says how lines are read. `compare.py` holds them to those of an earlier run, and
`readme.py` writes the documents, of which `kernel_tables.py` makes docs/kernels.md.
"""
