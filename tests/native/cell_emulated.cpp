// The equilibrium cell by matrix registers, on any processor.
#include "cpu/cell/kernels.h"
#include "cpu/cell/matrix_product.h"
#include "register_emulation.h"

namespace revdeq::cpu {

CellKernels emulated_cell() {
  return cell_kernels<MatrixProducts<EmulatedLanes, EmulatedRegisters>>("emulated AMX");
}

}  // namespace revdeq::cpu
