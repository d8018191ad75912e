// The equilibrium cell on a CPU: what the binding (cell_ops.cpp) and the loops compiled per
// instruction set agree on.
//
//   f(s) = act(W s + u)           y <- (1-b) y + b f(z)     z <- (1-b) z + b f(y)
//
// Rows do not depend on each other. A tile of them takes all steps, and all of them back, while its
// states stay in the cache; threads share the tiles. The gradient of W is summed up per group of
// tiles, and the groups in their order: nothing depends on the number of threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <numeric>

#include "half_step.h"

namespace revdeq::cpu {

enum class Act : int64_t { kTanh, kRelu, kGelu, kSilu, kGeluTanh };

constexpr int64_t kBlockRows = 6;  // rows of a product that share what they read of its right side
constexpr int64_t kPaddedTo = 16;  // columns: a whole number of vectors of any instruction set
constexpr int64_t kMostFeatures = 512;
constexpr int64_t kMostDigits = 8;  // of a byte
constexpr int64_t kMostTileRows = 96;

REVDEQ_INLINE constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// What both directions know. Its functions are inlined: a copy that the linker kept for all could
// be one of another instruction set.
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
  bool halting;           // rows, at residuals below tol
  float tol;
  Number type;  // of u and W
  const void* u;
  const void* w;
  const float* z0;
  const float* packed_wt;  // packed by pack_transposed
  bool finite_w;           // all of it

  REVDEQ_INLINE int64_t padded() const { return round_up(features, kPaddedTo); }
  // From row to row of a tile: no power of two, whose rows would share few places of a cache.
  REVDEQ_INLINE int64_t stride() const { return padded() + kPaddedTo; }
  REVDEQ_INLINE int64_t byte_rows() const { return (rows + rows_per_byte - 1) / rows_per_byte; }

  // Rows of a tile: so many that reading W is cheap beside the products, so few that the second
  // level of a cache holds its states, and that sixteen threads have a tile each if there are some
  // hundred rows.
  REVDEQ_INLINE int64_t tile_rows() const {
    const int64_t unit = std::lcm(kBlockRows, rows_per_byte);
    const int64_t most = kMostTileRows / unit * unit;
    const int64_t fair = round_up((rows + 15) / 16, unit);
    return std::clamp(fair, std::min(round_up(24, unit), most), most);
  }
  REVDEQ_INLINE int64_t tiles() const { return (rows + tile_rows() - 1) / tile_rows(); }
  // Of about as many rows as W has: their sums take no more memory than a state does.
  REVDEQ_INLINE int64_t groups() const {
    const int64_t tiles_of_w = (features + tile_rows() - 1) / tile_rows();
    return (tiles() + tiles_of_w - 1) / tiles_of_w;
  }
  REVDEQ_INLINE int64_t first_tile(int64_t group) const { return group * tiles() / groups(); }

  REVDEQ_INLINE int64_t sum_rows() const { return round_up(features, kBlockRows); }
  REVDEQ_INLINE int64_t sum_size() const { return sum_rows() * stride(); }
};

struct ForwardCall : CellCall {
  float* y;
  float* z;
  int32_t* fixed;  // y's, then z's; null where no backward pass will need them, like digits
  uint8_t* digits;
  int32_t* flag;
  int32_t* taken;  // null where no row halts, like residual
  float* residual;
};

struct BackwardCall : CellCall {
  const float* grad_y;
  const float* grad_z;
  const void* y;  // int32 or float
  const void* z;
  const uint8_t* digits;
  const int32_t* taken;
  const float* packed_w;  // packed by pack
  float keep;             // of the adjoint: 1 - beta and beta, as they are applied
  float beta;
  void* grad_u;
  float* grad_z0;      // null where nobody asks for it
  float* group_sums;   // [groups, sum_size]: the gradient of W of each group
  float* distances;    // of each group
  int32_t* lost_rows;  // of each group
  float* grad_w;
};

// Tiles, or groups of them: each thread takes the next one that none has taken.
using Next = std::atomic<int64_t>;

struct CellKernels {
  const char* instruction_set;
  int64_t (*packed_size)(const CellCall&);  // floats, for either packing
  void (*pack_transposed)(const CellCall&, float* to);
  void (*pack)(const CellCall&, float* to);
  void (*forward)(const ForwardCall&, Next& tile);
  void (*backward)(const BackwardCall&, Next& group);
  void (*sum_groups)(const BackwardCall&, int64_t begin_row, int64_t end_row);  // of W
};

CellKernels baseline_cell();
CellKernels avx2_cell();
CellKernels avx512_cell();

}  // namespace revdeq::cpu
