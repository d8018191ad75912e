"""One short visit to a machine with a GPU: `python -m bench.visit`, or `bench/campaign.sh`.

`steps.py` is the table of what is done, `runner.py` does it within its limits, `report.py` hands it
over, `keep.py` stores it. What runs the steps imports nothing but Python: it works where the build
failed.
"""
