"""What is shown of stored lines: tables, figures, the page, and the figures of the documents.

The columns stand beside what measures them. `terminal.py`, `html.py` and `readme.py` show tables
of them, `compare.py` holds lines to those of an earlier run; `documents.py` says which tables the
pages of bench/ have, `cell_tables.py` those of the cell, `kernel_tables.py` those of
docs/kernels.md.
"""
