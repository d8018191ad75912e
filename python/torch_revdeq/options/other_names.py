"""Names that options have in other libraries, and what to use here instead. Data only.

``names.py`` and ``limit/names.py`` read these tables for the error that an unknown option raises.
"""

from __future__ import annotations

# ---- solve, RevDEQ and models ----------------------------------------------------------------

_STEPS = (
    *("max_iter", "max_iters", "max_iterations", "n_iter", "n_iters", "num_iter", "num_iters"),
    *("num_iterations", "n_steps", "num_steps", "steps", "f_max_iter", "f_max_steps"),
    *("n_loops", "num_loops", "max_depth", "num_recurrences", "iterations", "loops", "iters"),
)
_TOL = ("f_tol", "tolerance", "atol", "rtol", "abs_tol", "rel_tol", "f_eps", "residual_tol", "eps")

ELSEWHERE = {
    **dict.fromkeys(_STEPS, "max_steps"),
    **dict.fromkeys(_TOL, "tol"),
    **dict.fromkeys(("damping", "relaxation", "f_tau", "tau"), "beta"),
    **dict.fromkeys(("backprop_depth", "bptt_steps", "grad_steps"), "backward_steps"),
    **dict.fromkeys(("fractional_bits", "num_bits"), "frac_bits"),
    **dict.fromkeys(("state_dtype", "solver_dtype"), "state"),
    **dict.fromkeys(("backward_method", "gradient_method", "differentiation"), "adjoint"),
    **dict.fromkeys(("indexing", "n_states"), "save_at"),
}
"""Names of ``solve``'s options in other code: torchdeq, scipy, DEQs and looped transformers."""

_LIMIT = "solve has one solver, whose steps are differentiated; torch_revdeq.fixed_point takes "
_STOP = "tol= takes a StoppingRule, which measures another residual"
_EVAL = (
    "solve takes the same max_steps in training and evaluation; change it by "
    "set_solver(model, max_steps=...)"
)
_PHANTOM = f"{_LIMIT}adjoint='phantom', phantom_steps="
_NORM = "it has no counterpart: use torch.nn.utils.parametrizations on the layers of f"
_JACOBIAN = "it has no counterpart: add torch_revdeq.jacobian_penalty(...) to the loss"

NO_OPTION = {
    "f_solver": f"{_LIMIT}solver=",
    "b_solver": f"{_LIMIT}adjoint_solver=",
    **dict.fromkeys(("b_tol", "b_eps"), f"{_LIMIT}adjoint_tol="),
    **dict.fromkeys(("b_max_iter", "b_max_steps", "b_threshold"), f"{_LIMIT}adjoint_max_steps="),
    **dict.fromkeys(("ift", "hook_ift"), f"{_LIMIT}adjoint='implicit'"),
    **dict.fromkeys(("phantom_steps", "phantom_beta"), f"{_LIMIT}it with adjoint='phantom'"),
    **dict.fromkeys(("adjoint_solver", "adjoint_tol", "adjoint_max_steps"), f"{_LIMIT}it"),
    **dict.fromkeys(("f_stop_mode", "b_stop_mode", "stop_mode"), _STOP),
    **dict.fromkeys(("eval_factor", "eval_f_max_iter"), _EVAL),
}
"""Options of other libraries that ``solve`` does not have, with what to use instead."""

WORDS = {
    "solver": f"{_LIMIT}solver=",
    "grad": f"all steps are differentiated, or the last backward_steps=; {_PHANTOM}",
    **dict.fromkeys(("sup_gap", "sup_loc"), "save_at= returns z after chosen steps, for the loss"),
    "core": "it has no counterpart: save_at= returns z after chosen steps, for the loss",
    "gamma": "it has no counterpart: weight the losses of the states that save_at= returns",
    "m": f"{_LIMIT}solver=Anderson(memory=...)",
    "lam": f"{_LIMIT}solver=Anderson(ridge=...)",
    "LBFGS_thres": f"{_LIMIT}solver=Broyden(memory=...)",
    "ls": "it has no counterpart: there is no line search, also not in Broyden of fixed_point",
    "return_final": "it has no counterpart: z is the final state",
    "no_stat": "it has no counterpart: statistics are read when they are asked for",
    "sradius_mode": "it has no counterpart: call torch_revdeq.spectral_radius(f, z, ...)",
    **dict.fromkeys(("norm_type", "norm_no_scale", "norm_clip", "norm_clip_value"), _NORM),
    **dict.fromkeys(("norm_target_norm", "sn_n_power_iters"), _NORM),
    **dict.fromkeys(("jac_loss_weight", "jac_loss_freq", "jac_incremental"), _JACOBIAN),
}
"""The same for names that a layer or model may have as attributes of its own."""

OF_LIMIT = ("implicit", "phantom")
"""Values of `adjoint` that only ``fixed_point`` takes."""

# ---- fixed_point -----------------------------------------------------------------------------

OF_FIXED_POINT = {
    "f_solver": "solver",
    **dict.fromkeys(("b_solver", "backward_solver"), "adjoint_solver"),
    **dict.fromkeys(("b_tol", "b_eps", "backward_tol"), "adjoint_tol"),
    **dict.fromkeys(("b_max_iter", "b_max_steps", "b_threshold"), "adjoint_max_steps"),
    **dict.fromkeys(("ift", "hook_ift"), "adjoint='implicit'"),
    "grad": "adjoint='phantom', phantom_steps",
    "tau": "phantom_beta",
    **dict.fromkeys(("beta", "damping", "relaxation", "f_tau"), "solver=Relaxed(beta)"),
    "m": "solver=Anderson(memory=...)",
    "lam": "solver=Anderson(ridge=...)",
    "LBFGS_thres": "solver=Broyden(memory=...)",
}
"""The names in torchdeq and other code for options of ``fixed_point``."""

_ONE_STATE = (
    "it has no counterpart: fixed_point returns one state, and solve(..., save_at=) several"
)

NOT_OF_FIXED_POINT = {
    **dict.fromkeys(
        ("f_stop_mode", "b_stop_mode", "stop_mode"),
        "it has no counterpart: the residual is relative; a solver of your own may stop otherwise",
    ),
    **dict.fromkeys(
        ("eval_factor", "eval_f_max_iter"), "it has no counterpart: pass another max_steps="
    ),
    **dict.fromkeys(("core", "gamma", "sup_gap", "sup_loc", "n_states", "indexing"), _ONE_STATE),
    **{
        name: WORDS[name]
        for name in (
            *("no_stat", "sradius_mode", "norm_type", "norm_no_scale", "norm_clip"),
            *("norm_clip_value", "norm_target_norm", "sn_n_power_iters"),
            *("jac_loss_weight", "jac_loss_freq", "jac_incremental"),
        )
    },
    "ls": "it has no counterpart: Broyden has no line search",
    "return_final": "it has no counterpart: z is the last iterate, of Broyden the best",
    "kwargs": "it has no counterpart: pass arguments of f after z0, or wrap f in functools.partial",
}
"""Options of other libraries, and of ``solve``, that ``fixed_point`` does not have."""
