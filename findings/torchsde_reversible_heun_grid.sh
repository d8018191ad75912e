#!/usr/bin/env bash
# torchsde.sdeint_adjoint with reversible_heun and adjoint_reversible_heun, where dt does not divide the interval.
#
# Guess: the solver is algebraically reversible, so its gradient is that of backpropagation through the same steps, up
# to rounding, for any dt.
# Seen (torchsde 0.2.6, torch 2.13.0, CPU, Python 3.11, float64): for dt = 1/8 on [0, 1], the gradient of each
# parameter is right to 1e-15. For dt = 0.3 they are up to 18 % off, with the same solution and no warning: the
# forward pass steps to 0.3, 0.6, 0.9 and 1 and the backward pass from 1 to 0.7, 0.4, 0.1 and 0, so it reverses steps
# that were never taken. With dt = 1/8 and an output time of 0.33 they are up to 39 % off: each interval between
# output times has its own grid.
# What it means here: a reversible method has exact gradients only over the steps that were taken. The solver reverses
# the steps that it counted, also where it stopped early by tol; there is no grid to rebuild.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 scipy==1.17.1 torchsde==0.2.6
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import torch
import torchsde
from torch import nn

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)


class Equation(nn.Module):
    noise_type, sde_type = "diagonal", "stratonovich"

    def __init__(self):
        super().__init__()
        self.drift = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))
        self.noise = nn.Linear(4, 4)
        self.times = []

    def f(self, t, y):
        self.times.append(float(t))
        return self.drift(y) - y

    def g(self, t, y):
        return torch.sigmoid(self.noise(y)) / 2


equation = Equation()
start = torch.randn(8, 4)


def solved(times, dt, adjoint):
    """The solution, the gradients, and the times of the backward pass."""
    noise = torchsde.BrownianInterval(t0=times[0], t1=times[-1], size=(8, 4), entropy=3)
    options = {"adjoint_method": "adjoint_reversible_heun"} if adjoint else {}
    solve = torchsde.sdeint_adjoint if adjoint else torchsde.sdeint
    end = solve(equation, start, torch.tensor(times), bm=noise, dt=dt, method="reversible_heun", **options)
    equation.times.clear()
    gradients = torch.autograd.grad((end**2).sum(), list(equation.parameters()))
    return end.detach(), gradients, sorted({round(abs(t), 6) for t in equation.times})


cases = {"dt divides": ([0.0, 1.0], 0.125), "dt = 0.3": ([0.0, 1.0], 0.3), "output at 0.33": ([0.0, 0.33, 1.0], 0.125)}
for name, (times, dt) in cases.items():
    end, found, visited = solved(times, dt, adjoint=True)
    same, want, _ = solved(times, dt, adjoint=False)
    assert torch.allclose(end, same, rtol=1e-12), "changed: the solution"
    off = max(float((a - b).norm() / b.norm()) for a, b in zip(found, want))
    print(f"{name}: the worst gradient is {off:.2g} off; evaluated in the backward pass at {visited}")
    if name == "dt divides":
        assert off < 1e-11, "changed: not reversible"
    else:
        assert off > 0.01, "changed: the backward pass reverses the steps that were taken"
PYTHON
echo "as stated above"
