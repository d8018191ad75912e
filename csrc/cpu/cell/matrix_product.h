// The products of the cell in bfloat16, by registers that hold matrices (amx.h): c <- a b, or
// c + a b, for a tile. Each sum is accumulated in the same order, regardless of its row and column.
// So f has the same bits in both passes, whichever tile a row is in.
#pragma once
#include "cpu/cell/matrix_layout.h"

namespace revdeq::cpu {

// What the passes need of the products. Numbers that are read by a product are kept in bfloat16,
// and are zero beyond the features.
template <class L, class Registers>
class MatrixProducts {
 public:
  using Lanes = L;
  using Read = bfloat16;
  static constexpr Block kBlock{kRegisterRows, kRightColumns};

  explicit MatrixProducts(const ForwardCall& call) : MatrixProducts(call, 0) {}
  explicit MatrixProducts(const BackwardCall& call)
      : MatrixProducts(call, kGathered * chunks_of(call.tile_rows())) {}

  static int64_t packed_bytes(const CellCall& call) {
    return call.padded() * call.padded() * static_cast<int64_t>(sizeof(bfloat16));
  }

  template <bool kTransposed>
  static void pack(const CellCall& call, void* to) {
    const int64_t n = call.features, chunks = chunks_of(n);
    const Part w{static_cast<const bfloat16*>(call.w), n, n, n};
    uint32_t* words = static_cast<uint32_t*>(to);
    if constexpr (kTransposed)
      pack_right_transposed<Lanes>(w, chunks, call.padded(), words);
    else
      pack_right<Lanes>(w, chunks, call.padded(), words, chunks * 2 * kRegisterWords);
  }

  // The first `count` elements of a vector; the others become zero.
  static REVDEQ_INLINE void store(Read* to, typename Lanes::Real x, Number, int64_t count) {
    Lanes::store_factor(to, x);
    for (; count < Lanes::kWidth; ++count) to[count] = Read{};
  }

  // c <- s W, or c + s W, for a tile, with W as packed.
  template <bool kAdd>
  void times_w(const Place& place, const Read* s, const void* w, int64_t terms, float* c,
               const bool* live) {
    const int64_t chunks = chunks_of(call_.features);
    multiply<kAdd>({s, call_.stride()}, static_cast<const uint32_t*>(w), chunks,
                   terms == 0 ? 0 : chunks, c, place.block_rows, live);
  }

  // sum <- sum + g^T s, over the rows of a tile: once a few of them are gathered, or at the latest
  // in finish_outer, because reading and writing the sum takes longer than a product.
  void add_outer(const Place& place, const Read* g, const Read* s, float* sum) {
    const int64_t stride = call_.stride(), chunks = chunks_of(place.rows);
    if (gathered_ + chunks > room_) finish_outer(sum);
    pack_left_transposed<Lanes>({g, stride, place.rows, stride}, chunks, call_.sum_rows(),
                                left() + gathered_ * kRegisterRows, room_ * kRegisterRows);
    pack_right<Lanes>({s, stride, place.rows, stride}, chunks, call_.padded(),
                      right() + gathered_ * 2 * kRegisterWords, room_ * 2 * kRegisterWords);
    gathered_ += chunks;
  }
  void finish_outer(float* sum) {
    multiply<true>({reinterpret_cast<const bfloat16*>(left()), room_ * kTerms}, right(), room_,
                   gathered_, sum, call_.sum_rows(), nullptr);
    gathered_ = 0;
  }

 private:
  static constexpr int64_t kGathered = 4;   // half steps
  static constexpr int64_t kRowBytes = 64;  // of a register

  MatrixProducts(const CellCall& call, int64_t room)
      : call_(call), room_(room), factors_(room * kRowBytes * (call.sum_rows() + call.padded())) {}

  uint32_t* left() const { return static_cast<uint32_t*>(factors_.get()); }
  uint32_t* right() const { return left() + call_.sum_rows() * room_ * kRegisterRows; }

  struct Left {
    const bfloat16* at;
    int64_t stride;

    REVDEQ_INLINE Left from_block(int64_t block) const {
      return {at + block * kRegisterRows * stride, stride};
    }
  };

  // The first `chunks` of the terms of `b`, whose panels have room for more. `c` has the row stride
  // of a tile.
  template <bool kAdd>
  void multiply(const Left& a, const uint32_t* b, int64_t room, int64_t chunks, float* c,
                int64_t rows, const bool* live) {
    const int64_t stride = call_.stride(), blocks = rows / kRegisterRows;
    for (int64_t block = 0; block < blocks;) {
      const bool first = !live || live[block];
      const bool second = block + 1 < blocks && (!live || live[block + 1]);
      const Left left = a.from_block(block);
      float* to = c + block * kRegisterRows * stride;
      const uint32_t* panel = b;
      for (int64_t column = 0; column < call_.padded(); column += kRightColumns) {
        if (first && second)
          multiply_block<kAdd, 2>(left, panel, chunks, to + column);
        else if (first)
          multiply_block<kAdd, 1>(left, panel, chunks, to + column);
        panel += room * 2 * kRegisterWords;
      }
      block += first && second ? 2 : 1;
    }
  }

  // One or two registers' rows, and two registers' columns.
  template <bool kAdd, int kBlocks>
  REVDEQ_INLINE void multiply_block(const Left& a, const uint32_t* b, int64_t chunks, float* c) {
    const int64_t row_bytes = call_.stride() * static_cast<int64_t>(sizeof(float));
    float* second = c + kRegisterRows * call_.stride();
    if constexpr (kAdd) {
      registers_.template load<0>(c, row_bytes);
      registers_.template load<1>(c + kRegisterRows, row_bytes);
      if constexpr (kBlocks == 2) registers_.template load<2>(second, row_bytes);
      if constexpr (kBlocks == 2) registers_.template load<3>(second + kRegisterRows, row_bytes);
    } else {
      registers_.template zero<0>();
      registers_.template zero<1>();
      if constexpr (kBlocks == 2) registers_.template zero<2>();
      if constexpr (kBlocks == 2) registers_.template zero<3>();
    }
    Left left = a;
    const int64_t left_bytes = a.stride * static_cast<int64_t>(sizeof(bfloat16));
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      registers_.template load<6>(b, kRowBytes);
      registers_.template load<7>(b + kRegisterWords, kRowBytes);
      registers_.template load<4>(left.at, left_bytes);
      registers_.template multiply_add<0, 4, 6>();
      registers_.template multiply_add<1, 4, 7>();
      if constexpr (kBlocks == 2) {
        registers_.template load<5>(left.from_block(1).at, left_bytes);
        registers_.template multiply_add<2, 5, 6>();
        registers_.template multiply_add<3, 5, 7>();
      }
      left.at += kTerms;
      b += 2 * kRegisterWords;
    }
    registers_.template store<0>(c, row_bytes);
    registers_.template store<1>(c + kRegisterRows, row_bytes);
    if constexpr (kBlocks == 2) registers_.template store<2>(second, row_bytes);
    if constexpr (kBlocks == 2) registers_.template store<3>(second + kRegisterRows, row_bytes);
  }

  const CellCall& call_;
  const int64_t room_;            // for the terms of outer products, in chunks
  int64_t gathered_ = 0;          // of them
  AlignedMemory<Lanes> factors_;  // of the outer products
  Registers registers_;
};

}  // namespace revdeq::cpu
