// How the registers of matrix_product.h lie in memory. A left factor has rows of 32 terms. A right
// factor has pairs of terms interleaved: row p of 16 holds, of 16 columns, terms 2p and 2p + 1 in
// turn. A product of two registers adds 32 terms to 16 x 16 sums; further terms are further
// registers, called chunks.
#pragma once
#include "cpu/cell/tile.h"

namespace revdeq::cpu {

constexpr int64_t kRegisterRows = 16;    // of 16 float32, or 32 bfloat16
constexpr int64_t kTerms = 32;           // of a product of two registers
constexpr int64_t kRegisterWords = 256;  // of 4 bytes
constexpr int64_t kRightColumns = 32;    // a right factor has two registers next to each other

REVDEQ_INLINE int64_t chunks_of(int64_t terms) { return round_up(terms, kTerms) / kTerms; }

// Part of a matrix in memory; beyond its rows and columns it counts as zero.
struct Part {
  const bfloat16* at;
  int64_t stride;
  int64_t rows;
  int64_t columns;

  REVDEQ_INLINE Part from(int64_t row, int64_t column) const {
    return {at + row * stride + column, stride, rows - row, columns - column};
  }
};

template <class Lanes>
REVDEQ_INLINE typename Lanes::Real load_part(const Part& part, int64_t row, int64_t column) {
  const int64_t count = std::min<int64_t>(part.columns - column, Lanes::kWidth);
  if (row >= part.rows || count <= 0) return typename Lanes::Real{};
  return load_some<Lanes>(part.at + row * part.stride + column, count);
}

// 32 rows and 16 columns as a right factor: a word is a pair.
template <class Lanes>
REVDEQ_INLINE void interleave(const Part& part, uint32_t* to) {
  using Uint = typename Lanes::Uint;
  for (int64_t pair = 0; pair < kRegisterRows; ++pair) {
    for (int64_t column = 0; column < kRegisterRows; column += Lanes::kWidth) {
      // A bfloat16 is the high half of a float.
      const auto even = (Uint)Lanes::as_int(load_part<Lanes>(part, 2 * pair, column));
      const auto odd = (Uint)Lanes::as_int(load_part<Lanes>(part, 2 * pair + 1, column));
      Lanes::store_int(reinterpret_cast<int32_t*>(to + pair * kRegisterRows + column),
                       (typename Lanes::Int)(even >> 16 | odd));
    }
  }
}

// 16 rows and 32 columns, as they are.
template <class Lanes>
REVDEQ_INLINE void copy_padded(const Part& part, uint32_t* to) {
  for (int64_t row = 0; row < kRegisterRows; ++row)
    for (int64_t column = 0; column < kTerms; column += Lanes::kWidth)
      Lanes::store(reinterpret_cast<bfloat16*>(to + row * kRegisterRows) + column,
                   load_part<Lanes>(part, row, column));
}

// Of 16 times 16 words.
template <class Lanes>
REVDEQ_INLINE void transpose(const uint32_t* from, uint32_t* to, int64_t to_stride) {
  if constexpr (Lanes::kWidth == kRegisterRows) {
    Lanes::transpose(from, to, to_stride);
  } else {
    for (int64_t row = 0; row < kRegisterRows; ++row)
      for (int64_t column = 0; column < kRegisterRows; ++column)
        to[column * to_stride + row] = from[row * kRegisterRows + column];
  }
}

// A right factor: panels of two registers' columns, each with the registers of all its terms, of
// both halves in turn. `words` is the size of a panel.
template <class Lanes>
void pack_right(const Part& part, int64_t chunks, int64_t columns, uint32_t* to, int64_t words) {
  for (int64_t panel = 0; panel < columns; panel += kRightColumns, to += words)
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      for (int64_t half = 0; half < 2; ++half)
        interleave<Lanes>(part.from(chunk * kTerms, panel + half * kRegisterRows),
                          to + (chunk * 2 + half) * kRegisterWords);
}

// The same of the transpose of a matrix, of which 16 rows give the 16 columns of a register.
template <class Lanes>
void pack_right_transposed(const Part& part, int64_t chunks, int64_t columns, uint32_t* to) {
  alignas(kAlignment) uint32_t rows[kRegisterWords];
  for (int64_t panel = 0; panel < columns; panel += kRightColumns)
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      for (int64_t half = 0; half < kRightColumns; half += kRegisterRows, to += kRegisterWords) {
        copy_padded<Lanes>(part.from(panel + half, chunk * kTerms), rows);
        transpose<Lanes>(rows, to, kRegisterRows);
      }
}

// The transpose of a matrix as a left factor: the terms of a row, its own rows, are next to each
// other. `words` is the size of a row.
template <class Lanes>
void pack_left_transposed(const Part& part, int64_t chunks, int64_t rows, uint32_t* to,
                          int64_t words) {
  alignas(kAlignment) uint32_t pairs[kRegisterWords];
  for (int64_t row = 0; row < rows; row += kRegisterRows, to += kRegisterRows * words)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      interleave<Lanes>(part.from(chunk * kTerms, row), pairs);
      transpose<Lanes>(pairs, to + chunk * kRegisterRows, words);
    }
}

}  // namespace revdeq::cpu
