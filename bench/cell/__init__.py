"""The equilibrium cell against its rows: `measure.py` runs the ways to solve it of `methods.py`."""
