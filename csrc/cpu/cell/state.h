// How a tile of the cell stores y and z: as fixed-point numbers, with the digits of a half step, or
// as floats.
#pragma once
#include "cpu/cell/tile.h"

namespace revdeq::cpu {

// The half steps of a fixed-point state. Each has its own Digits for a column of vectors: a byte
// holds the digits of rows_per_byte rows.
template <class Lanes, Form kForm>
struct ExactState {
  using Real = typename Lanes::Real;
  using Int = typename Lanes::Int;
  using Word = int32_t;
  using Value = Int;
  static constexpr bool kExact = true;

  struct Digits {
    Int byte{};
    int32_t place =
        kForm == Form::kShift ? 0 : 1;  // of the next digit: its bit offset, or its weight
  };

  explicit ExactState(const CellCall& call, int64_t tie) : step(call.exact_step[tie]) {}

  static REVDEQ_INLINE Value load(const Word* p) { return Lanes::load_int(p); }
  static REVDEQ_INLINE void store(Word* p, Value v) { Lanes::store_int(p, v); }
  REVDEQ_INLINE Real read(Value v) const { return from_fixed<Lanes>(v, step.unscale); }

  // `reach` (tile.h) accumulates the magnitudes that must be inside the range. Results of other
  // values are arbitrary.
  REVDEQ_INLINE Value start(Real z0, Int& reach) const { return to_fixed_inside(z0, reach); }
  REVDEQ_INLINE Value update(Value v, Real f, Digits& digits, Int& reach) const {
    Int digit;
    const Int next = after<kForm, Lanes>(v, to_fixed_inside(f, reach), step, digit);
    // For beta < 1 the new state lies between v and f.
    if (step.negate != 0)
      reach = Lanes::larger(reach, Lanes::outside(next, static_cast<int32_t>(kRange)) & 0x7fffffff);
    push(digits, digit);
    return next;
  }
  static REVDEQ_INLINE bool left_range(Int reach) {
    return Lanes::any(reach >= static_cast<int32_t>(float_bits(kRange)));
  }
  REVDEQ_INLINE Value invert(Value v, Real f, Digits& digits) const {
    Int ignored{};
    return before<kForm, Lanes>(v, to_fixed_inside(f, ignored), step,
                                pop_digit<kForm, Lanes>(digits.byte, step));
  }

  // For a row that has halted.
  REVDEQ_INLINE void skip_update(Digits& digits) const { push(digits, Int{}); }
  REVDEQ_INLINE void skip_invert(Digits& digits) const {
    pop_digit<kForm, Lanes>(digits.byte, step);
  }

  const ExactStep step;

 private:
  REVDEQ_INLINE Int to_fixed_inside(Real x, Int& reach) const {
    const Real scaled = product(x, step.scale);
    take_in<Lanes>(reach, scaled);
    return Lanes::nearest_inside(scaled);
  }
  REVDEQ_INLINE void push(Digits& digits, Int digit) const {
    if constexpr (kForm == Form::kShift) {
      digits.byte |= digit << digits.place;
      digits.place += step.log2_base;
    } else {
      push_digit<Lanes>(digits.byte, digit, step, digits.place);
    }
  }
};

template <class Lanes>
struct FloatState {
  using Real = typename Lanes::Real;
  using Int = typename Lanes::Int;
  using Word = float;
  using Value = Real;
  static constexpr bool kExact = false;

  struct Digits {};

  explicit FloatState(const CellCall& call, int64_t) : step(call.float_step) {}

  static REVDEQ_INLINE Value load(const Word* p) { return Lanes::load(p); }
  static REVDEQ_INLINE void store(Word* p, Value v) { Lanes::store(p, v); }
  REVDEQ_INLINE Real read(Value v) const { return v; }
  REVDEQ_INLINE Value start(Real z0, Int&) const { return z0; }

  REVDEQ_INLINE Value update(Value v, Real f, Digits&, Int&) const {
    return half_step<Direction::kUpdate>(v, f, step);
  }
  static REVDEQ_INLINE bool left_range(Int) { return false; }
  REVDEQ_INLINE void skip_update(Digits&) const {}
  REVDEQ_INLINE Value invert(Value v, Real f, Digits&) const {
    return half_step<Direction::kInvert>(v, f, step);
  }
  REVDEQ_INLINE void skip_invert(Digits&) const {}

  const FloatStep<float> step;
};

// How half step k breaks ties: n mod 2 for y, (n + 1) mod 2 for z, to avoid a bias.
REVDEQ_INLINE int64_t tie_of(int64_t k) { return (k / 2 + k % 2) % 2; }

// `body.template operator()<State>()` for the state of the call.
template <class Lanes, class Body>
auto with_state(const CellCall& call, const Body& body) {
  if (!call.exact) return body.template operator()<FloatState<Lanes>>();
  if (call.form == Form::kShift) return body.template operator()<ExactState<Lanes, Form::kShift>>();
  if (call.form == Form::kInteger)
    return body.template operator()<ExactState<Lanes, Form::kInteger>>();
  return body.template operator()<ExactState<Lanes, Form::kGeneral>>();
}

}  // namespace revdeq::cpu
