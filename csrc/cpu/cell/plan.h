// The equilibrium cell on a CPU: the interface between the binding (cell_ops.cpp) and the loops
// compiled per instruction set.
//
//   f(s) = act(W s + u)           y <- (1-b) y + b f(z)     z <- (1-b) z + b f(y)
//
// Rows are independent. A tile of rows takes all steps, forward or backward, while its states stay
// in the cache; tiles are divided among threads. The gradient of W is summed per group of tiles,
// then over the groups in order, so no result depends on the number of threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <numeric>

#include "half_step.h"

namespace revdeq::cpu {

enum class Act : int64_t { kTanh, kRelu, kGelu, kSilu, kGeluTanh };

constexpr int64_t kMostFeatures = 512;
constexpr int64_t kMostDigits = 8;  // of a byte
constexpr int64_t kMostTileRows = 96;
constexpr size_t kAlignment = 64;  // bytes, of buffers and of packed matrices

REVDEQ_INLINE constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Products are computed in blocks; a tile has a whole number of them.
struct Block {
  int64_t rows;
  int64_t columns;
};

// Shared by both passes. Its functions are inlined, because the linker could keep a copy compiled
// for another instruction set.
struct CellCall {
  int64_t rows;
  int64_t features;
  int64_t steps;
  Act act;
  bool exact;
  Form form;
  ExactStep exact_step[2];  // by tie
  FloatStep<float> float_step;
  int64_t rows_per_byte;  // of digits; 1 for a float state
  bool halting;           // rows halt at residuals below tol
  float tol;
  Block block;
  Number type;  // of u and W
  const void* u;
  const void* w;
  const float* z0;
  const void* packed_wt;  // packed by pack_transposed
  bool finite_w;          // whether all of W is finite

  REVDEQ_INLINE int64_t padded() const { return round_up(features, block.columns); }
  // The row stride of a tile: not a power of two, so that rows do not map to the same cache sets.
  REVDEQ_INLINE int64_t stride() const { return padded() + block.columns; }
  REVDEQ_INLINE int64_t byte_rows() const { return (rows + rows_per_byte - 1) / rows_per_byte; }

  // Rows of a tile: enough that reading W is cheap compared to the products, but few enough that
  // its states fit into the second-level cache and, where the unit allows it, that sixteen threads
  // each have a tile if there are a few hundred rows.
  REVDEQ_INLINE int64_t tile_rows() const {
    const int64_t unit = std::lcm(block.rows, rows_per_byte);
    const int64_t most = kMostTileRows / unit * unit;
    const int64_t fair = round_up((rows + 15) / 16, unit);
    return std::clamp(fair, std::min(round_up(24, unit), most), most);
  }
  REVDEQ_INLINE int64_t tiles() const { return (rows + tile_rows() - 1) / tile_rows(); }
  // Groups have about as many rows as W, so that their sums take no more memory than a state.
  REVDEQ_INLINE int64_t groups() const {
    const int64_t tiles_of_w = (features + tile_rows() - 1) / tile_rows();
    return (tiles() + tiles_of_w - 1) / tiles_of_w;
  }
  REVDEQ_INLINE int64_t first_tile(int64_t group) const { return group * tiles() / groups(); }

  REVDEQ_INLINE int64_t sum_rows() const { return round_up(features, block.rows); }
  REVDEQ_INLINE int64_t sum_size() const { return sum_rows() * stride(); }
};

struct ForwardCall : CellCall {
  float* y;
  float* z;
  int32_t* fixed;  // y, then z; null, like digits, if no backward pass follows
  uint8_t* digits;
  int32_t* flag;
  int32_t* taken;  // null, like residual, if no row halts
  float* residual;
};

struct BackwardCall : CellCall {
  const float* grad_y;
  const float* grad_z;
  const void* y;  // int32 or float
  const void* z;
  const uint8_t* digits;
  const int32_t* taken;
  const void* packed_w;  // packed by pack
  float keep;            // of the adjoint: 1 - beta and beta as applied
  float beta;
  void* grad_u;
  float* grad_z0;      // null if not wanted
  float* group_sums;   // [groups, sum_size]: the gradient of W of each group
  float* distances;    // of each group
  int32_t* lost_rows;  // of each group
  float* grad_w;
};

// Hands out tiles, or groups of tiles: each thread takes the next one.
using Next = std::atomic<int64_t>;

struct CellKernels {
  const char* instruction_set;
  Block block;
  int64_t (*packed_bytes)(const CellCall&);            // for either packing
  void (*pack_transposed)(const CellCall&, void* to);  // to a multiple of kAlignment
  void (*pack)(const CellCall&, void* to);
  void (*forward)(const ForwardCall&, Next& tile);
  void (*backward)(const BackwardCall&, Next& group);
  void (*sum_groups)(const BackwardCall&, int64_t begin_row, int64_t end_row);  // of W
};

// The fastest that this processor can run for W of a type (cell_ops.cpp). The same in all calls,
// because both passes must compute the same bits.
const CellKernels& best_cell(Number type);

CellKernels baseline_cell();
CellKernels avx2_cell();
CellKernels avx512_cell();
CellKernels amx_cell();  // for W in bfloat16 only

}  // namespace revdeq::cpu
