// The products of the cell in float32: c <- a b, or c + a b, for a tile. Each sum is accumulated
// from its first term to its last in one accumulator, regardless of its row and column. So f has
// the same bits in both passes, whichever tile a row is in.
#pragma once
#include "cpu/cell/tile.h"

#if defined(__clang__)
#define REVDEQ_UNROLL_ALL _Pragma("clang loop unroll(full)")
#else
#define REVDEQ_UNROLL_ALL _Pragma("GCC unroll 8")
#endif

namespace revdeq::cpu {

constexpr int64_t kBlockRows = 6;  // rows of a product that share loads of its right factor

// Element (row, k) is at[row * by_row + k * by_k].
struct LeftMatrix {
  const float* at;
  int64_t by_row;
  int64_t by_k;
};

// A panel has as many columns as the accumulators of a block of a product: 24 of 32 registers, or
// 12 of 16.
template <class Lanes>
constexpr int64_t kPanelVectors = Lanes::kWidth == 16 ? 4 : 2;
template <class Lanes>
constexpr int64_t kPanel = kPanelVectors<Lanes> * Lanes::kWidth;

// Element (k, column) is at[column / kPanel * by_panel + k * by_k + column % kPanel].
struct RightMatrix {
  const float* at;
  int64_t by_k;
  int64_t by_panel;
};

// kBlockRows rows of this many vectors.
template <class Lanes, bool kAdd, int kVectors>
REVDEQ_INLINE void multiply_block(const LeftMatrix& a, const float* b, int64_t by_k, int64_t terms,
                                  float* c, int64_t c_stride) {
  using Real = typename Lanes::Real;
  Real sums[kBlockRows][kVectors];
  REVDEQ_UNROLL_ALL
  for (int i = 0; i < kBlockRows; ++i) {
    REVDEQ_UNROLL_ALL
    for (int v = 0; v < kVectors; ++v)
      sums[i][v] = kAdd ? Lanes::load(c + i * c_stride + v * Lanes::kWidth) : Real{};
  }
  const float* left = a.at;
  for (int64_t k = 0; k < terms; ++k, left += a.by_k, b += by_k) {
    Real right[kVectors];
    REVDEQ_UNROLL_ALL
    for (int v = 0; v < kVectors; ++v) right[v] = Lanes::load(b + v * Lanes::kWidth);
    REVDEQ_UNROLL_ALL
    for (int i = 0; i < kBlockRows; ++i) {
      const Real factor = Lanes::splat(left[i * a.by_row]);
      REVDEQ_UNROLL_ALL
      for (int v = 0; v < kVectors; ++v)
        sums[i][v] = Lanes::multiply_add(factor, right[v], sums[i][v]);
    }
  }
  REVDEQ_UNROLL_ALL
  for (int i = 0; i < kBlockRows; ++i) {
    REVDEQ_UNROLL_ALL
    for (int v = 0; v < kVectors; ++v)
      Lanes::store(c + i * c_stride + v * Lanes::kWidth, sums[i][v]);
  }
}

template <class Lanes, bool kAdd, int kVectors>
void multiply_panel(LeftMatrix a, const float* b, int64_t by_k, int64_t terms, float* c,
                    int64_t c_stride, int64_t rows, const bool* live) {
  for (int64_t row = 0; row < rows; row += kBlockRows) {
    if (!live || live[row / kBlockRows])
      multiply_block<Lanes, kAdd, kVectors>(a, b, by_k, terms, c, c_stride);
    a.at += kBlockRows * a.by_row;
    c += kBlockRows * c_stride;
  }
}

// `rows` is a multiple of kBlockRows, `columns` of a vector's width. `live` selects the blocks
// of rows to compute; null means all.
template <class Lanes, bool kAdd>
void multiply(const LeftMatrix& a, const RightMatrix& b, int64_t terms, float* c, int64_t c_stride,
              int64_t rows, int64_t columns, const bool* live = nullptr) {
  const float* panel = b.at;
  for (int64_t column = 0; column < columns; column += kPanel<Lanes>, panel += b.by_panel) {
    const int64_t vectors = std::min<int64_t>((columns - column) / Lanes::kWidth, 4);
    const auto run = [&]<int kVectors>() {
      multiply_panel<Lanes, kAdd, kVectors>(a, panel, b.by_k, terms, c + column, c_stride, rows,
                                            live);
    };
    if constexpr (kPanelVectors<Lanes> == 2) {
      run.template operator()<2>();
    } else {
      if (vectors == 4) run.template operator()<4>();
      if (vectors == 3) run.template operator()<3>();
      if (vectors == 2) run.template operator()<2>();
      if (vectors == 1) run.template operator()<1>();
    }
  }
}

// ---- W, packed -------------------------------------------------------------------------------

// Panels of columns, padded with zeros. Element (k, column) is W's (k, column), or (column, k).
template <class Lanes, bool kTransposed, class T>
void pack_as(const CellCall& call, float* to) {
  const T* w = static_cast<const T*>(call.w);
  const int64_t n = call.features;
  for (int64_t first = 0; first < call.padded(); first += kPanel<Lanes>) {
    for (int64_t k = 0; k < n; ++k) {
      for (int64_t column = first; column < first + kPanel<Lanes>; ++column) {
        const int64_t i = kTransposed ? column * n + k : k * n + column;
        *to++ = column < n ? static_cast<float>(Storage<T>::widen(w[i])) : 0.0f;
      }
    }
  }
}

// What the passes need of the products. Numbers that are read by a product are kept as floats,
// rounded to W's type.
template <class L>
class FloatProducts {
 public:
  using Lanes = L;
  using Read = float;
  static constexpr Block kBlock{kBlockRows, 16};  // whole vectors of any instruction set

  explicit FloatProducts(const CellCall& call) : call_(call) {}

  static int64_t packed_bytes(const CellCall& call) {
    const int64_t columns = round_up(call.padded(), kPanel<Lanes>);
    return columns * call.features * static_cast<int64_t>(sizeof(float));
  }

  template <bool kTransposed>
  static void pack(const CellCall& call, void* to) {
    float* floats = static_cast<float*>(to);
    if (call.type == Number::kFloat32) return pack_as<Lanes, kTransposed, float>(call, floats);
    if (call.type == Number::kBfloat16) return pack_as<Lanes, kTransposed, bfloat16>(call, floats);
    pack_as<Lanes, kTransposed, float16>(call, floats);
  }

  // The first `count` elements of a vector; the others are not read by a product.
  static REVDEQ_INLINE void store(Read* to, typename Lanes::Real x, Number type, int64_t) {
    Lanes::store(to, operand<Lanes>(x, type));
  }

  // c <- s W, or c + s W, for a tile, with W as packed.
  template <bool kAdd>
  void times_w(const Place& place, const Read* s, const void* w, int64_t terms, float* c,
               const bool* live) const {
    multiply<Lanes, kAdd>({s, call_.stride(), 1}, packed(w), terms, c, call_.stride(),
                          place.block_rows, call_.padded(), live);
  }

  // sum <- sum + g^T s, over the rows of a tile.
  void add_outer(const Place& place, const Read* g, const Read* s, float* sum) const {
    const int64_t stride = call_.stride();
    multiply<Lanes, true>({g, 1, stride}, {s, stride, kPanel<Lanes>}, place.rows, sum, stride,
                          call_.sum_rows(), call_.padded());
  }
  void finish_outer(float*) const {}

 private:
  RightMatrix packed(const void* w) const {
    return {static_cast<const float*>(w), kPanel<Lanes>, kPanel<Lanes> * call_.features};
  }

  const CellCall& call_;
};

}  // namespace revdeq::cpu
