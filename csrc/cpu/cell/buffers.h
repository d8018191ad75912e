// The position of a tile of the cell, and its memory.
#pragma once
#include <cstring>
#include <new>

#include "cpu/cell/plan.h"

namespace revdeq::cpu {

// Memory for vectors and matrices. A template, so that each instruction set has its own functions;
// otherwise the linker would keep one for all.
template <class Lanes>
class AlignedMemory {
 public:
  explicit AlignedMemory(int64_t bytes)
      : at_(::operator new(static_cast<size_t>(bytes), std::align_val_t{kAlignment})) {}
  ~AlignedMemory() { ::operator delete(at_, std::align_val_t{kAlignment}); }
  AlignedMemory(const AlignedMemory&) = delete;
  AlignedMemory& operator=(const AlignedMemory&) = delete;

  void* get() const { return at_; }

 private:
  void* at_;
};

// Zeroed buffers of a tile's size, each of floats, int32 or bfloat16.
template <class Lanes>
class Buffers {
 public:
  Buffers(const CellCall& call, int count)
      : bytes_(round_up(call.tile_rows(), call.block.rows) * call.stride() *
               static_cast<int64_t>(sizeof(float))),
        memory_(bytes_ * count) {
    std::memset(memory_.get(), 0, static_cast<size_t>(bytes_ * count));
  }

  template <class Word>
  Word* get(int index) const {
    static_assert(sizeof(Word) <= sizeof(float));
    return reinterpret_cast<Word*>(static_cast<char*>(memory_.get()) + bytes_ * index);
  }

 private:
  int64_t bytes_;  // of each
  AlignedMemory<Lanes> memory_;
};

// The position of a tile: its rows, and the rows of its bytes of digits.
struct Place {
  REVDEQ_INLINE Place(const CellCall& call, int64_t tile)
      : first(tile * call.tile_rows()),
        rows(std::min(call.tile_rows(), call.rows - first)),
        block_rows(round_up(rows, call.block.rows)),
        first_byte(first / call.rows_per_byte) {}

  int64_t first;
  int64_t rows;
  int64_t block_rows;
  int64_t first_byte;
};

}  // namespace revdeq::cpu
