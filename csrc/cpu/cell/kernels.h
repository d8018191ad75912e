// The cell's kernels for any kind of lanes. Each cell_*.cpp instantiates them for its own
// instruction set, below its target pragma: nothing here may be included above one.
#pragma once
#include "cpu/cell/backward.h"
#include "cpu/cell/forward.h"

namespace revdeq::cpu {

// `body.template operator()<Act, State>()` for those of the call.
template <class Lanes, class Body>
void with_act_and_state(const CellCall& call, const Body& body) {
  const auto with = [&]<class Activation>() {
    with_state<Lanes>(call, [&]<class State>() { body.template operator()<Activation, State>(); });
  };
  switch (call.act) {
    case Act::kTanh:
      return with.template operator()<Tanh>();
    case Act::kRelu:
      return with.template operator()<Relu>();
    case Act::kGelu:
      return with.template operator()<Gelu>();
    case Act::kSilu:
      return with.template operator()<Silu>();
    case Act::kGeluTanh:
      return with.template operator()<GeluTanh>();
  }
}

template <class Lanes>
void forward_cell(const ForwardCall& call, int64_t begin, int64_t end) {
  with_act_and_state<Lanes>(call, [&]<class Activation, class State>() {
    ForwardTiles<Lanes, Activation, State> tiles(call);
    for (int64_t tile = begin; tile < end; ++tile) tiles.run(tile);
  });
}

template <class Lanes>
void backward_cell(const BackwardCall& call, int64_t begin, int64_t end) {
  with_act_and_state<Lanes>(call, [&]<class Activation, class State>() {
    BackwardTiles<Lanes, Activation, State> tiles(call);
    for (int64_t group = begin; group < end; ++group) {
      float* sum = call.group_sums + group * call.sum_size();
      std::fill_n(sum, call.sum_size(), 0.0f);
      call.distances[group] = 0;
      call.lost_rows[group] = 0;
      const int64_t first = group * call.tiles_per_group();
      const int64_t last = std::min(first + call.tiles_per_group(), call.tiles());
      for (int64_t tile = first; tile < last; ++tile)
        tiles.run(tile, sum, call.distances[group], call.lost_rows[group]);
    }
  });
}

template <class Lanes>
CellKernels cell_kernels(const char* instruction_set) {
  return {instruction_set,     packed_size<Lanes>,   pack_w<Lanes, true>, pack_w<Lanes, false>,
          forward_cell<Lanes>, backward_cell<Lanes>, sum_groups<Lanes>};
}

}  // namespace revdeq::cpu
