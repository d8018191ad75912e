#!/usr/bin/env bash
# torchdeq.solver.broyden_solver with LBFGS_thres, which keeps the last so many updates in place of all.
#
# Guess: a shorter memory takes some steps more, as it does in SciPy (max_rank) and in textbooks.
# Seen (torchdeq 0.1.0, torch 2.13.0, CPU, Python 3.11): z = tanh(W z + x) of width 64 with a spectral radius of 1.2 in
# float64 is solved to 1e-8 with 40 evaluations if all updates are kept. With 20 or 8 it diverges: f stays finite, but
# z overflows, and what is returned as the state of lowest residual is NaN. The updates are kept as a sum of products u
# v^T, each made from all that came before it; the newest takes the place of the oldest, which leaves terms that belong
# to no inverse Jacobian. "The lowest so far" is mask * new + ~mask * lowest, which is NaN where new is infinite.
# What it means here: Broyden(memory=m) is the method with its last m steps, in one small linear system, so forgetting
# a step leaves a Jacobian that explains the others; it takes 46 evaluations with 16. The best state is chosen by where.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 scipy==1.17.1 torchdeq==0.1.0
"$folder/env/bin/python" - <<'PYTHON'
import math

import torch
from torchdeq.solver import broyden_solver


def solved(**options):
    """Evaluations of f, and the lowest residual of the worst row."""
    drawn = torch.Generator().manual_seed(1)
    w = torch.randn(64, 64, generator=drawn, dtype=torch.float64) * 1.2 / 8
    x = torch.randn(8, 64, generator=drawn, dtype=torch.float64)
    calls = []

    def f(z):
        calls.append(1)
        return torch.tanh(z @ w.T + x)

    options = {"max_iter": 200, "tol": 1e-8, "stop_mode": "rel", **options}
    z, _, info = broyden_solver(f, torch.zeros_like(x), **options)
    return len(calls), float(info["rel_lowest"].max()), bool(z.isfinite().all())


whole = solved()
print("all updates:", whole)
assert whole[0] < 60 and whole[1] < 1e-8 and whole[2]
for memory in (20, 8):
    found = solved(LBFGS_thres=memory)
    print(f"the last {memory}:", found)
    assert found[0] > 200 and math.isnan(found[1]), "changed"
PYTHON
echo "as stated above"
