// The backward pass of a tile of the cell: all steps in reverse, and its gradients.
#pragma once
#include <cmath>
#include <limits>

#include "cpu/activations.h"
#include "cpu/cell/product.h"
#include "cpu/cell/state.h"
#include "cpu/cell/tile.h"

namespace revdeq::cpu {

// A float row must be reconstructed to within this, relative to its largest number.
constexpr float kFloatTolerance = 1e-3f;

template <class Word>
struct HalfStepBack {
  int64_t k;       // of the half steps
  const float* x;  // W s
  const float* u;
  Word* state;
  float* read;            // its copy for the products of the half step before
  const uint8_t* digits;  // of the tile
  float* grad;    // of the state: times beta the seed of this half step; times 1 - beta afterwards
  float* grad_x;  // the seed times act'(x + u), rounded to W's type
  float* grad_u;  // to which the same is added, not rounded
  const bool* moving;  // of each row, null: all
};

// state <- (state - beta act(x + u)) / (1 - beta), and the gradient of x + u
template <class Lanes, class Act, class State>
void invert_tile(const BackwardCall& call, const Place& place,
                 const HalfStepBack<typename State::Word>& half) {
  const State state(call, tie_of(half.k));
  const Number type = call.type;
  for (int64_t first = 0; first < place.rows; first += call.rows_per_byte) {
    const int64_t end = std::min(first + call.rows_per_byte, place.rows);
    const uint8_t* bytes = half.digits + first / call.rows_per_byte * call.features;
    each_vector<Lanes>(call.features, [&](int64_t column, int64_t count) {
      typename State::Digits digits;
      if constexpr (State::kExact) digits.byte = load_bytes<Lanes>(bytes + column, count);
      for (int64_t row = first; row < end; ++row) {
        const int64_t at = row * call.stride() + column;
        if (half.moving && !half.moving[row]) {
          state.skip_invert(digits);
          Lanes::store(half.grad_x + at, typename Lanes::Real{});
          continue;
        }
        const auto grad = Lanes::load(half.grad + at);
        const auto x = Lanes::load(half.x + at) + Lanes::load(half.u + at);
        const auto [f, grad_x] = Act::template value_and_grad<Lanes>(x, product(grad, call.beta));
        Lanes::store(half.grad + at, product(grad, call.keep));
        Lanes::store(half.grad_u + at, Lanes::load(half.grad_u + at) + grad_x);
        Lanes::store(half.grad_x + at, operand<Lanes>(grad_x, type));
        const auto before = state.invert(State::load(half.state + at), f, digits);
        State::store(half.state + at, before);
        Lanes::store(half.read + at, operand<Lanes>(state.read(before), type));
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

template <class Lanes, class Act, class State>
class BackwardTiles {
 public:
  using Word = typename State::Word;

  explicit BackwardTiles(const BackwardCall& call)
      : call_(call),
        buffers_(call, kCount),
        wt_(packed<Lanes>(call, call.packed_wt)),
        w_(packed<Lanes>(call, call.packed_w)) {}

  // `sum` is the group's gradient of W; `distance` and `lost` are for its rows.
  void run(int64_t tile, float* sum, float& distance, int32_t& lost) {
    const Place place(call_, tile);
    const int64_t most = begin(place);
    for (int64_t n = most - 1; n >= 0; --n) {
      find_moving(place, n);
      half_step(place, 2 * n + 1, {z(), read(kReadZ), read(kGradZ)},
                {y(), read(kReadY), read(kGradY)}, sum);
      // z0 itself, which a float state only reconstructs approximately.
      if (n == 0 && !State::kExact) read_start(place);
      half_step(place, 2 * n, {y(), read(kReadY), read(kGradY)}, {z(), read(kReadZ), read(kGradZ)},
                sum);
    }
    end(place, distance, lost);
  }

 private:
  enum { kU, kX, kY, kZ, kReadY, kReadZ, kGradY, kGradZ, kGradX, kGradU, kCount };

  struct Side {
    Word* state;
    float* read;
    float* grad;
  };

  Word* y() const { return buffers_.template get<Word>(kY); }
  Word* z() const { return buffers_.template get<Word>(kZ); }
  float* read(int which) const { return buffers_.template get<float>(which); }
  const bool* moving() const { return call_.halting ? moving_ : nullptr; }
  const bool* live() const { return call_.halting ? live_ : nullptr; }

  // Returns the largest number of steps of a row.
  int64_t begin(const Place& place) {
    load_rows<Lanes>(call_, place, call_.u, call_.type, read(kU));
    load_rows<Lanes>(call_, place, call_.grad_y, Number::kFloat32, read(kGradY));
    load_rows<Lanes>(call_, place, call_.grad_z, Number::kFloat32, read(kGradZ));
    copy_rows(call_, place, call_.y, y());
    copy_rows(call_, place, call_.z, z());
    const State state(call_, 0);
    for (int64_t row = 0; row < place.rows; ++row) {
      for (int64_t column = 0; column < call_.padded(); column += Lanes::kWidth) {
        const int64_t at = row * call_.stride() + column;
        const auto end = state.read(State::load(y() + at));
        Lanes::store(read(kReadY) + at, operand<Lanes>(end, call_.type));
        Lanes::store(read(kGradU) + at, typename Lanes::Real{});
      }
    }
    if (!call_.halting) return call_.steps;
    int64_t most = 0;
    for (int64_t row = 0; row < place.rows; ++row)
      most = std::max<int64_t>(most, call_.taken[place.first + row]);
    return std::min(most, call_.steps);
  }

  void find_moving(const Place& place, int64_t n) {
    if (!call_.halting) return;
    for (int64_t row = 0; row < place.block_rows; ++row) {
      moving_[row] = row < place.rows && call_.taken[place.first + row] > n;
      bool& live = live_[row / kBlockRows];
      live = (row % kBlockRows != 0 && live) || moving_[row];
    }
  }

  // Inverts `to` with f at `from`, and adds f's vector-Jacobian product to the gradient of `from`.
  void half_step(const Place& place, int64_t k, const Side& to, const Side& from, float* sum) {
    const int64_t stride = call_.stride(), features = call_.features, padded = call_.padded();
    const int64_t terms = k == 0 ? terms_of_start<Lanes>(call_, place, from.read) : features;
    multiply<Lanes, false>({from.read, stride, 1}, wt_, terms, read(kX), stride, place.block_rows,
                           padded, live());
    const uint8_t* digits = nullptr;
    if (State::kExact)
      digits = call_.digits + (k * call_.byte_rows() + place.first_byte) * features;
    float* grad_x = read(kGradX);
    invert_tile<Lanes, Act, State>(call_, place,
                                   {k, read(kX), read(kU), to.state, to.read, digits, to.grad,
                                    grad_x, read(kGradU), moving()});
    if (k > 0 || call_.grad_z0)
      multiply<Lanes, true>({grad_x, stride, 1}, w_, features, from.grad, stride, place.block_rows,
                            padded, live());
    // If grad_x is not finite, its product with the zeros of z0 is NaN.
    if (terms == 0 && largest_of<Lanes>(call_, place, grad_x) <= kLargest) return;
    multiply<Lanes, true>({grad_x, 1, stride}, {from.read, stride, kPanel<Lanes>}, place.rows, sum,
                          stride, call_.sum_rows(), padded);
  }

  void read_start(const Place& place) {
    load_rows<Lanes>(call_, place, call_.z0, Number::kFloat32, read(kReadZ));
    if (call_.type == Number::kFloat32) return;
    for (int64_t row = 0; row < place.rows; ++row)
      for (int64_t column = 0; column < call_.padded(); column += Lanes::kWidth) {
        float* at = read(kReadZ) + row * call_.stride() + column;
        Lanes::store(at, operand<Lanes>(Lanes::load(at), call_.type));
      }
  }

  void end(const Place& place, float& distance, int32_t& lost) {
    const State state(call_, 0);
    for (int64_t row = 0; row < place.rows; ++row) {
      const int64_t at = (place.first + row) * call_.features, from = row * call_.stride();
      const auto found =
          arrival(call_, state, y() + from, z() + from, call_.z0 + at,
                  static_cast<const Word*>(call_.y) + at, static_cast<const Word*>(call_.z) + at);
      distance = std::max(distance, found.distance);
      lost += found.lost;
      const float nan = found.lost ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
      each_vector<Lanes>(call_.features, [&](int64_t column, int64_t count) {
        const int64_t i = from + column;
        const auto lost_here = Lanes::splat(nan);
        store_grad_u(at + column, Lanes::load(read(kGradU) + i) + lost_here, count);
        if (!call_.grad_z0) return;
        const auto grad_z0 = Lanes::load(read(kGradZ) + i) + Lanes::load(read(kGradY) + i);
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
  RightMatrix wt_;
  RightMatrix w_;
  bool moving_[kMostTileRows];
  bool live_[kMostTileRows / kBlockRows];
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
