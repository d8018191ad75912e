"""Presents stored rows: tables, figures, the report, and the tables of the documents.

The columns are defined next to the code that measures them. `terminal.py`, `html.py` and
`readme.py` show tables of them, `headline.py` sums them up, `compare.py` compares them with an
earlier run; `documents.py` defines the tables of the pages in bench/, `cell_tables.py` those of
the cell, `kernel_tables.py` those of docs/kernels.md.
"""
