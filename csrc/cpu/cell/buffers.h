// The position of a tile of the cell, and its memory.
#pragma once
#include <cstring>
#include <new>

#include "cpu/cell/plan.h"

namespace revdeq::cpu {

// Zeroed buffers of a tile's size, of floats or of int32, depending on the state. A template, so
// that each instruction set has its own functions; otherwise the linker would keep one for all.
template <class Lanes>
class Buffers {
 public:
  Buffers(const CellCall& call, int count)
      : size_(round_up(call.tile_rows(), kBlockRows) * call.stride()) {
    const size_t bytes = static_cast<size_t>(size_ * count) * sizeof(float);
    memory_ = ::operator new(bytes, kAlignment);
    std::memset(memory_, 0, bytes);
  }
  ~Buffers() { ::operator delete(memory_, kAlignment); }
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;

  template <class Word>
  Word* get(int index) const {
    return static_cast<Word*>(memory_) + size_ * index;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  int64_t size_;
  void* memory_;
};

// The position of a tile: its rows, and the rows of its bytes of digits.
struct Place {
  REVDEQ_INLINE Place(const CellCall& call, int64_t tile)
      : first(tile * call.tile_rows()),
        rows(std::min(call.tile_rows(), call.rows - first)),
        block_rows(round_up(rows, kBlockRows)),
        first_byte(first / call.rows_per_byte) {}

  int64_t first;
  int64_t rows;
  int64_t block_rows;
  int64_t first_byte;
};

}  // namespace revdeq::cpu
