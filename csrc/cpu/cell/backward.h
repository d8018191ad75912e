// The backward pass of a tile of the cell: all steps in reverse, and its gradients.
#pragma once
#include <cmath>
#include <limits>

#include "cpu/activations.h"
#include "cpu/cell/state.h"
#include "cpu/cell/tile.h"

namespace revdeq::cpu {

// A float row must be reconstructed to within this, relative to its largest number.
constexpr float kFloatTolerance = 1e-3f;

template <class Word, class Read>
struct HalfStepBack {
  int64_t k;       // of the half steps
  const float* x;  // W s
  const float* u;
  Word* state;
  Read* read;             // its copy for the products of the half step before
  const uint8_t* digits;  // of the tile
  float* grad;    // of the state: times beta the seed of this half step; times 1 - beta afterwards
  Read* grad_x;   // the seed times act'(x + u), rounded to W's type
  float* grad_u;  // to which the same is added, not rounded
  const bool* moving;  // of each row, null: all
};

// state <- (state - beta act(x + u)) / (1 - beta), and the gradient of x + u
template <class Products, class Act, class State>
void invert_tile(const BackwardCall& call, const Place& place,
                 HalfStepBack<typename State::Word, typename Products::Read> half) {
  using Lanes = typename Products::Lanes;
  const State state(call, tie_of(half.k));
  const Number type = call.type;
  const int64_t stride = call.stride();
  for (int64_t first = 0; first < place.rows; first += call.rows_per_byte) {
    const int64_t end = std::min(first + call.rows_per_byte, place.rows);
    const uint8_t* bytes = half.digits + first / call.rows_per_byte * call.features;
    each_vector<Lanes>(call.features, [&](int64_t column, int64_t count) {
      typename State::Digits digits;
      if constexpr (State::kExact) digits.byte = load_bytes<Lanes>(bytes + column, count);
      for (int64_t row = first; row < end; ++row) {
        const int64_t at = row * stride + column;
        if (half.moving && !half.moving[row]) {
          state.skip_invert(digits);
          Products::store(half.grad_x + at, typename Lanes::Real{}, type, count);
          continue;
        }
        const auto grad = Lanes::load(half.grad + at);
        const auto x = Lanes::load(half.x + at) + Lanes::load(half.u + at);
        const auto [f, grad_x] = Act::template value_and_grad<Lanes>(x, product(grad, call.beta));
        Lanes::store(half.grad + at, product(grad, call.keep));
        Lanes::store(half.grad_u + at, Lanes::load(half.grad_u + at) + grad_x);
        Products::store(half.grad_x + at, grad_x, type, count);
        const auto before = state.invert(State::load(half.state + at), f, digits);
        State::store(half.state + at, before);
        Products::store(half.read + at, state.read(before), type, count);
      }
    });
  }
}

// The distance of a reconstructed row from z0, and whether that is too far. `ends` are the final
// states: a row that is not finite there, or left the range of an exact state, is infinitely far.
struct Arrival {
  float distance;
  bool lost;
};

template <class Lanes, Form kForm>
Arrival arrival(const CellCall& call, const ExactState<Lanes, kForm>& state, const int32_t* y,
                const int32_t* z, const float* z0, const int32_t* y_end, const int32_t* z_end) {
  constexpr int32_t kLeftRange = std::numeric_limits<int32_t>::min();
  if (std::count(y_end, y_end + call.features, kLeftRange) > 0 ||
      std::count(z_end, z_end + call.features, kLeftRange) > 0)
    return {std::numeric_limits<float>::infinity(), true};
  int64_t apart = 0;
  int32_t ignored = 0;
  for (int64_t i = 0; i < call.features; ++i) {
    const int64_t start = to_fixed<ScalarLanes<float>>(z0[i], state.step.scale, ignored);
    apart = std::max({apart, std::abs(y[i] - start), std::abs(z[i] - start)});
  }
  return {static_cast<float>(apart) * state.step.unscale, apart != 0};
}

template <class Lanes>
Arrival arrival(const CellCall& call, const FloatState<Lanes>&, const float* y, const float* z,
                const float* z0, const float* y_end, const float* z_end) {
  using Int = typename Lanes::Int;
  Int apart{}, size{};
  each_vector<Lanes>(call.features, [&](int64_t at, int64_t count) {
    const auto start = load_some<Lanes>(z0 + at, count);
    // Beyond the features, a state can be NaN: an infinite number times W's padding.
    take_in<Lanes>(apart, load_some<Lanes>(y + at, count) - start);
    take_in<Lanes>(apart, load_some<Lanes>(z + at, count) - start);
    take_in<Lanes>(size, start);
    take_in<Lanes>(size, load_some<Lanes>(y_end + at, count));
    take_in<Lanes>(size, load_some<Lanes>(z_end + at, count));
  });
  const float distance = largest_of<Lanes>(apart);
  if (!(distance <= kLargest)) return {std::numeric_limits<float>::infinity(), true};
  return {distance, !(distance <= kFloatTolerance * largest_of<Lanes>(size))};
}

template <class Products, class Act, class State>
class BackwardTiles {
 public:
  using Lanes = typename Products::Lanes;
  using Word = typename State::Word;
  using Read = typename Products::Read;

  explicit BackwardTiles(const BackwardCall& call)
      : call_(call), buffers_(call, kCount), products_(call) {}

  // `sum` is the group's gradient of W; `distance` and `lost` are for its rows.
  void run(int64_t tile, float* sum, float& distance, int32_t& lost) {
    const Place place(call_, tile);
    const int64_t most = begin(place);
    for (int64_t n = most - 1; n >= 0; --n) {
      find_moving(place, n);
      half_step(place, 2 * n + 1, z(), y(), sum);
      // z0 itself, which a float state only reconstructs approximately.
      if (n == 0 && !State::kExact) read_start(place);
      half_step(place, 2 * n, y(), z(), sum);
    }
    products_.finish_outer(sum);
    end(place, distance, lost);
  }

 private:
  enum { kU, kX, kY, kZ, kReadY, kReadZ, kGradY, kGradZ, kGradX, kGradU, kCount };

  struct Side {
    Word* state;
    Read* read;
    float* grad;
  };

  Side y() const { return {buffer<Word>(kY), buffer<Read>(kReadY), buffer<float>(kGradY)}; }
  Side z() const { return {buffer<Word>(kZ), buffer<Read>(kReadZ), buffer<float>(kGradZ)}; }
  float* u() const { return buffer<float>(kU); }
  float* x() const { return buffer<float>(kX); }
  Read* grad_x() const { return buffer<Read>(kGradX); }
  float* grad_u() const { return buffer<float>(kGradU); }
  template <class Number>
  Number* buffer(int which) const {
    return buffers_.template get<Number>(which);
  }
  const bool* moving() const { return call_.halting ? moving_ : nullptr; }
  const bool* live() const { return call_.halting ? live_ : nullptr; }

  // Returns the largest number of steps of a row.
  int64_t begin(const Place& place) {
    load_rows<Lanes>(call_, place, call_.u, call_.type, u());
    load_rows<Lanes>(call_, place, call_.grad_y, Number::kFloat32, y().grad);
    load_rows<Lanes>(call_, place, call_.grad_z, Number::kFloat32, z().grad);
    copy_rows(call_, place, call_.y, y().state);
    copy_rows(call_, place, call_.z, z().state);
    const State state(call_, 0);
    for (int64_t row = 0; row < place.rows; ++row) {
      each_vector<Lanes>(call_.features, [&](int64_t column, int64_t count) {
        const int64_t at = row * call_.stride() + column;
        const auto end = state.read(State::load(y().state + at));
        Products::store(y().read + at, end, call_.type, count);
        Lanes::store(grad_u() + at, typename Lanes::Real{});
      });
    }
    if (!call_.halting) return call_.steps;
    int64_t most = 0;
    for (int64_t row = 0; row < place.rows; ++row)
      most = std::max<int64_t>(most, call_.taken[place.first + row]);
    return std::min(most, call_.steps);
  }

  void find_moving(const Place& place, int64_t n) {
    if (!call_.halting) return;
    for (int64_t row = 0; row < place.block_rows; ++row)
      moving_[row] = row < place.rows && call_.taken[place.first + row] > n;
    find_live_blocks(call_, place, moving_, live_);
  }

  // Inverts `to` with f at `from`, and adds f's vector-Jacobian product to the gradient of `from`.
  void half_step(const Place& place, int64_t k, const Side& to, const Side& from, float* sum) {
    const int64_t features = call_.features;
    const int64_t terms = k == 0 ? terms_of_start<Lanes>(call_, place, from.read) : features;
    products_.template times_w<false>(place, from.read, call_.packed_wt, terms, x(), live());
    const uint8_t* digits = nullptr;
    if (State::kExact)
      digits = call_.digits + (k * call_.byte_rows() + place.first_byte) * features;
    invert_tile<Products, Act, State>(
        call_, place,
        {k, x(), u(), to.state, to.read, digits, to.grad, grad_x(), grad_u(), moving()});
    if (k > 0 || call_.grad_z0) {
      copy_halted(place, from.grad, x());
      products_.template times_w<true>(place, grad_x(), call_.packed_w, features, from.grad,
                                       live());
      copy_halted(place, x(), from.grad);
    }
    // If grad_x is not finite, its product with the zeros of z0 is NaN.
    if (terms == 0 && largest_of<Lanes>(call_, place, grad_x()) <= kLargest) return;
    products_.add_outer(place, grad_x(), from.read, sum);
  }

  // A block's product may change its rows that have halted: by zeros times a W that is not finite,
  // or where it makes subnormal sums zero. They must not depend on the company of others.
  void copy_halted(const Place& place, const float* from, float* to) const {
    if (!call_.halting) return;
    for (int64_t row = 0; row < place.rows; ++row)
      if (!moving_[row] && live_[row / call_.block.rows])
        std::copy_n(from + row * call_.stride(), call_.features, to + row * call_.stride());
  }

  void read_start(const Place& place) {
    const float* z0 = call_.z0 + place.first * call_.features;
    for (int64_t row = 0; row < place.rows; ++row, z0 += call_.features)
      each_vector<Lanes>(call_.features, [&](int64_t column, int64_t count) {
        Products::store(z().read + row * call_.stride() + column,
                        load_some<Lanes>(z0 + column, count), call_.type, count);
      });
  }

  void end(const Place& place, float& distance, int32_t& lost) {
    const State state(call_, 0);
    for (int64_t row = 0; row < place.rows; ++row) {
      const int64_t at = (place.first + row) * call_.features, from = row * call_.stride();
      const auto found =
          arrival(call_, state, y().state + from, z().state + from, call_.z0 + at,
                  static_cast<const Word*>(call_.y) + at, static_cast<const Word*>(call_.z) + at);
      distance = std::max(distance, found.distance);
      lost += found.lost;
      const float nan = found.lost ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
      each_vector<Lanes>(call_.features, [&](int64_t column, int64_t count) {
        const int64_t i = from + column;
        const auto lost_here = Lanes::splat(nan);
        store_grad_u(at + column, Lanes::load(grad_u() + i) + lost_here, count);
        if (!call_.grad_z0) return;
        const auto grad_z0 = Lanes::load(z().grad + i) + Lanes::load(y().grad + i);
        store_some<Lanes>(call_.grad_z0 + at + column, grad_z0 + lost_here, count);
      });
    }
  }

  REVDEQ_INLINE void store_grad_u(int64_t at, typename Lanes::Real grad, int64_t count) const {
    if (call_.type == Number::kFloat32)
      return store_some<Lanes>(static_cast<float*>(call_.grad_u) + at, grad, count);
    if (call_.type == Number::kBfloat16)
      return store_some<Lanes>(static_cast<bfloat16*>(call_.grad_u) + at, grad, count);
    store_some<Lanes>(static_cast<float16*>(call_.grad_u) + at, grad, count);
  }

  const BackwardCall& call_;
  Buffers<Lanes> buffers_;
  Products products_;
  bool moving_[kMostTileRows];  // rows
  bool live_[kMostTileRows];    // whether any of a block's does, by block
};

// Adds up the groups' gradients of W, in order.
template <class Lanes>
void sum_groups(const BackwardCall& call, int64_t begin_row, int64_t end_row) {
  const int64_t groups = call.groups();
  bool lost = false;
  for (int64_t group = 0; group < groups; ++group) lost |= call.lost_rows[group] > 0;
  const auto nan = Lanes::splat(lost ? std::numeric_limits<float>::quiet_NaN() : 0.0f);
  for (int64_t row = begin_row; row < end_row; ++row) {
    each_vector<Lanes>(call.features, [&](int64_t column, int64_t count) {
      const float* from = call.group_sums + row * call.stride() + column;
      auto sum = Lanes::load(from);
      for (int64_t group = 1; group < groups; ++group)
        sum = sum + Lanes::load(from + group * call.sum_size());
      store_some<Lanes>(call.grad_w + row * call.features + column, sum + nan, count);
    });
  }
}

}  // namespace revdeq::cpu
