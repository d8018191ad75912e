// The two ops of the equilibrium cell on CPUs, private to revdeq_kernels/ops/cell/cpu.py.
#pragma once

namespace revdeq::cpu {

constexpr const char* kForwardName = "_linear_cell_forward_";
constexpr const char* kForwardSchema =
    "_linear_cell_forward_(Tensor u, Tensor w, Tensor z0, float beta, int steps, int act, "
    "bool exact, int frac_bits, float tol, Tensor(a!) y, Tensor(b!) z, Tensor(c!) fixed, "
    "Tensor(d!) digits, Tensor(e!) flag, Tensor(f!) taken, Tensor(g!) residual) -> ()";

constexpr const char* kBackwardName = "_linear_cell_backward_";
constexpr const char* kBackwardSchema =
    "_linear_cell_backward_(Tensor grad_y, Tensor grad_z, Tensor y, Tensor z, Tensor digits, "
    "Tensor taken, Tensor u, Tensor w, Tensor z0, float beta, int steps, int act, bool exact, "
    "int frac_bits, float tol, Tensor(a!) grad_u, Tensor(b!) grad_w, Tensor(c!) grad_z0, "
    "Tensor(d!) distance, Tensor(e!) lost) -> ()";

}  // namespace revdeq::cpu
