// Every op of a backend under the name that schema.cpp gives it.
#pragma once
#include "pass_ops.h"

namespace revdeq {

template <class Backend, class Library>
void register_ops(Library& m) {
  using O = Ops<Backend>;
  using P = PassOps<Backend>;
  constexpr auto kUpdate = Direction::kUpdate, kInvert = Direction::kInvert;
  m.impl("update_", TORCH_BOX(&O::template half_step<kUpdate>));
  m.impl("update_.list", TORCH_BOX(&O::template half_steps<kUpdate>));
  m.impl("update_.channels", TORCH_BOX(&O::template channel_step<kUpdate>));
  m.impl("invert_", TORCH_BOX(&O::template half_step<kInvert>));
  m.impl("invert_.list", TORCH_BOX(&O::template half_steps<kInvert>));
  m.impl("invert_.channels", TORCH_BOX(&O::template channel_step<kInvert>));
  m.impl("update_exact_", TORCH_BOX(&O::update_exact));
  m.impl("update_exact_.list", TORCH_BOX(&O::update_exacts));
  m.impl("invert_exact_", TORCH_BOX(&O::invert_exact));
  m.impl("invert_exact_.list", TORCH_BOX(&O::invert_exacts));
  m.impl("adjoint_", TORCH_BOX(&O::adjoint));
  m.impl("adjoint_.list", TORCH_BOX(&O::adjoints));
  m.impl("quantize", TORCH_BOX(&O::quantize));
  m.impl("quantize.list", TORCH_BOX(&O::quantizes));
  m.impl("dequantize", TORCH_BOX(&O::dequantize));
  m.impl("dequantize.list", TORCH_BOX(&O::dequantizes));
  m.impl("residual", TORCH_BOX(&O::residual));
  m.impl("residual.list", TORCH_BOX(&O::residuals));
  m.impl("invert_z_adjoint_y_", TORCH_BOX(&P::carry_y));
  m.impl("invert_z_adjoint_y_.list", TORCH_BOX(&P::carry_ys));
  m.impl("invert_y_adjoint_z_", TORCH_BOX(&P::carry_z));
  m.impl("invert_y_adjoint_z_.list", TORCH_BOX(&P::carry_zs));
  m.impl("invert_y_adjoint_z0_", TORCH_BOX(&P::carry_z0));
  m.impl("invert_y_adjoint_z0_.list", TORCH_BOX(&P::carry_z0s));
  m.impl("invert_z_adjoint_y_exact_", TORCH_BOX(&P::carry_y_exact));
  m.impl("invert_z_adjoint_y_exact_.list", TORCH_BOX(&P::carry_ys_exact));
  m.impl("invert_y_adjoint_z_exact_", TORCH_BOX(&P::carry_z_exact));
  m.impl("invert_y_adjoint_z_exact_.list", TORCH_BOX(&P::carry_zs_exact));
  m.impl("invert_y_adjoint_z0_exact_", TORCH_BOX(&P::carry_z0_exact));
  m.impl("invert_y_adjoint_z0_exact_.list", TORCH_BOX(&P::carry_z0s_exact));
}

}  // namespace revdeq
