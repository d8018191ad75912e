// All steps of a tile of the cell.
#pragma once
#include <cmath>
#include <limits>
#include <utility>

#include "cpu/activations.h"
#include "cpu/cell/state.h"
#include "cpu/cell/tile.h"

namespace revdeq::cpu {

constexpr float kEpsilon = 1e-5f;
constexpr int kSumColumns = 16;  // of a residual's sums: whole vectors of any instruction set

// What a half step of a tile reads and writes in addition to the call's tensors.
template <class Word, class Read>
struct HalfStepOfTile {
  int64_t k;  // of the half steps
  float* x;   // W s; f if rows halt, for `judge`
  const float* u;
  Word* state;
  Read* read;          // its copy for the next product
  uint8_t* digits;     // of the tile; null if they are not kept
  int32_t* left;       // of each row: not 0 once it left the range of an exact state
  const bool* moving;  // of each row, null: all
};

// state <- (1 - beta) state + beta act(x + u)
template <class Products, class Act, class State>
void update_tile(const CellCall& call, const Place& place,
                 HalfStepOfTile<typename State::Word, typename Products::Read> half) {
  using Lanes = typename Products::Lanes;
  using Int = typename Lanes::Int;
  const State state(call, tie_of(half.k));
  const Number type = call.type;
  const int64_t stride = call.stride();
  for (int64_t first = 0; first < place.rows; first += call.rows_per_byte) {
    const int64_t end = std::min(first + call.rows_per_byte, place.rows);
    Int reach[kMostDigits] = {};
    uint8_t* bytes = half.digits;
    if (bytes) bytes += first / call.rows_per_byte * call.features;
    each_vector<Lanes>(call.features, [&](int64_t column, int64_t count) {
      typename State::Digits digits;
      for (int64_t row = first; row < end; ++row) {
        if (half.moving && !half.moving[row]) {
          state.skip_update(digits);
          continue;
        }
        const int64_t at = row * stride + column;
        const auto f =
            Act::template value<Lanes>(Lanes::load(half.x + at) + Lanes::load(half.u + at));
        if (half.moving) Lanes::store(half.x + at, f);
        const auto next = state.update(State::load(half.state + at), f, digits, reach[row - first]);
        State::store(half.state + at, next);
        Products::store(half.read + at, state.read(next), type, count);
      }
      if constexpr (State::kExact)
        if (bytes) store_bytes<Lanes>(bytes + column, digits.byte, count);
    });
    if constexpr (State::kExact)
      for (int64_t row = first; row < end; ++row)
        if (State::left_range(reach[row - first])) half.left[row] = 1;
  }
}

template <class Lanes>
float sum_of(const typename Lanes::Real (&vectors)[kSumColumns / Lanes::kWidth]) {
  float lanes[kSumColumns], sum = 0;
  for (int64_t i = 0; i < kSumColumns; i += Lanes::kWidth)
    Lanes::store(lanes + i, vectors[i / Lanes::kWidth]);
  for (const float lane : lanes) sum += lane;
  return sum;
}

// The residual |y - f| / (1e-5 + |f|) of a row; NaN if the square of |f| exceeds float32, because
// it is then meaningless. Sums are by column modulo kSumColumns, so that all lanes give the same
// bits.
template <class Lanes, class State>
float residual_of(const State& state, const typename State::Word* y, const float* f,
                  int64_t features) {
  constexpr int kVectors = kSumColumns / Lanes::kWidth;
  typename Lanes::Real apart[kVectors] = {}, size[kVectors] = {};
  for (int64_t column = 0; column < features; column += Lanes::kWidth) {
    const auto value = Lanes::load(f + column);
    const auto difference = state.read(State::load(y + column)) - value;
    const int64_t v = column / Lanes::kWidth % kVectors;
    apart[v] = Lanes::multiply_add(difference, difference, apart[v]);
    size[v] = Lanes::multiply_add(value, value, size[v]);
  }
  const float sizes = sum_of<Lanes>(size);
  if (sizes > kLargest) return std::numeric_limits<float>::quiet_NaN();
  return std::sqrt(sum_of<Lanes>(apart)) / (kEpsilon + std::sqrt(sizes));
}

template <class Products, class Act, class State>
class ForwardTiles {
 public:
  using Lanes = typename Products::Lanes;
  using Word = typename State::Word;
  using Read = typename Products::Read;

  explicit ForwardTiles(const ForwardCall& call)
      : call_(call), buffers_(call, kCount), products_(call) {}

  void run(int64_t tile) {
    const Place place(call_, tile);
    begin(place);
    for (int64_t n = 0; n < call_.steps && any_moves(place); ++n) {
      half_step(place, 2 * n, y(), read_z(), read_y());
      half_step(place, 2 * n + 1, z(), read_y(), read_z());
      if (call_.halting) judge(place);
    }
    end(place);
  }

 private:
  enum { kU, kX, kY, kZ, kReadY, kReadZ, kCount };

  Word* y() const { return buffers_.template get<Word>(kY); }
  Word* z() const { return buffers_.template get<Word>(kZ); }
  Read* read_y() const { return buffers_.template get<Read>(kReadY); }
  Read* read_z() const { return buffers_.template get<Read>(kReadZ); }
  float* u() const { return buffers_.template get<float>(kU); }
  float* x() const { return buffers_.template get<float>(kX); }

  void begin(const Place& place) {
    load_rows<Lanes>(call_, place, call_.u, call_.type, u());
    load_rows<Lanes>(call_, place, call_.z0, Number::kFloat32, x());
    const State state(call_, 0);
    std::fill(moving_ + place.rows, moving_ + place.block_rows, false);
    for (int64_t row = 0; row < place.rows; ++row) {
      moving_[row] = true;
      typename Lanes::Int reach{};
      each_vector<Lanes>(call_.features, [&](int64_t column, int64_t count) {
        const int64_t at = row * call_.stride() + column;
        const auto start = state.start(Lanes::load(x() + at), reach);
        State::store(y() + at, start);
        State::store(z() + at, start);
        Products::store(read_z() + at, state.read(start), call_.type, count);
      });
      left_[row] = State::left_range(reach);
      taken_[row] = 0;
    }
    find_live(place);
  }

  void half_step(const Place& place, int64_t k, Word* state, const Read* from, Read* to) {
    const int64_t terms = k == 0 ? terms_of_start<Lanes>(call_, place, from) : call_.features;
    products_.template times_w<false>(place, from, call_.packed_wt, terms, x(),
                                      call_.halting ? live_ : nullptr);
    clear_padding(place);
    uint8_t* digits = nullptr;
    if (State::kExact && call_.digits)
      digits = call_.digits + (k * call_.byte_rows() + place.first_byte) * call_.features;
    update_tile<Products, Act, State>(
        call_, place, {k, x(), u(), state, to, digits, left_, call_.halting ? moving_ : nullptr});
  }

  // W's padding times what a float16 holds as infinity, or what is infinite, is NaN. It must not
  // count for the range of a row, nor for its residual.
  void clear_padding(const Place& place) {
    if (call_.type != Number::kFloat16 && !call_.halting) return;
    for (int64_t row = 0; row < place.rows; ++row) {
      float* of_row = x() + row * call_.stride();
      std::fill(of_row + call_.features, of_row + call_.padded(), 0.0f);
    }
  }

  void judge(const Place& place) {
    const State state(call_, 0);
    for (int64_t row = 0; row < place.rows; ++row) {
      if (!moving_[row]) continue;
      ++taken_[row];
      const int64_t at = row * call_.stride();
      residual_[row] = residual_of<Lanes>(state, y() + at, x() + at, call_.features);
      moving_[row] = !(residual_[row] < call_.tol);
    }
    find_live(place);
  }

  // Which blocks of rows contain a row that moves.
  void find_live(const Place& place) { find_live_blocks(call_, place, moving_, live_); }
  bool any_moves(const Place& place) const {
    const bool* end = live_ + place.block_rows / call_.block.rows;
    return std::find(live_, end, true) != end;
  }

  void end(const Place& place) {
    const State state(call_, 0);
    for (int64_t row = 0; row < place.rows; ++row) {
      const int64_t to = (place.first + row) * call_.features, from = row * call_.stride();
      end_of_row(state, y() + from, call_.y + to, left_[row]);
      end_of_row(state, z() + from, call_.z + to, left_[row]);
      if (State::kExact && left_[row]) __atomic_fetch_or(call_.flag, 1, __ATOMIC_RELAXED);
      if (State::kExact && call_.fixed) {
        fixed_of_row(y() + from, call_.fixed + to, left_[row]);
        fixed_of_row(z() + from, call_.fixed + call_.rows * call_.features + to, left_[row]);
      }
      if (call_.halting) {
        call_.taken[place.first + row] = taken_[row];
        call_.residual[place.first + row] = residual_[row];
      }
    }
  }

  void fixed_of_row(const Word* from, int32_t* to, int32_t left) {
    if (left)
      std::fill_n(to, call_.features, std::numeric_limits<int32_t>::min());
    else
      std::memcpy(to, from, static_cast<size_t>(call_.features) * sizeof(Word));
  }

  void end_of_row(const State& state, const Word* from, float* to, int32_t left) {
    if (left) {
      std::fill_n(to, call_.features, std::numeric_limits<float>::quiet_NaN());
      return;
    }
    each_vector<Lanes>(call_.features, [&](int64_t at, int64_t count) {
      store_some<Lanes>(to + at, state.read(State::load(from + at)), count);
    });
  }

  const ForwardCall& call_;
  Buffers<Lanes> buffers_;
  Products products_;
  bool moving_[kMostTileRows];  // rows
  bool live_[kMostTileRows];    // whether any of a block's does, by block
  int32_t left_[kMostTileRows];
  int32_t taken_[kMostTileRows];
  float residual_[kMostTileRows];
};

}  // namespace revdeq::cpu
