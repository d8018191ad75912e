"""What every benchmark needs: a run, clocks, cases, the gate, the ceilings, stored lines."""
