// The equilibrium cell for any processor, four numbers at a time.
#include "cpu/cell/kernels.h"
#include "cpu/cell/product.h"
#include "cpu/simd_portable.h"

namespace revdeq::cpu {

CellKernels baseline_cell() { return cell_kernels<FloatProducts<PortableLanes>>("baseline"); }

}  // namespace revdeq::cpu
