// The loops for any processor, one element at a time.
#include "cpu/loops.h"

namespace revdeq::cpu {

Kernels baseline_kernels() { return kernels<ScalarLanes<float>, ScalarLanes<double>>("baseline"); }

}  // namespace revdeq::cpu
