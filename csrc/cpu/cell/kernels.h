// The cell's kernels for any kind of products and lanes. Each cell_*.cpp instantiates them for its
// own instruction set, below its target pragma: do not include this file above such a pragma.
#pragma once
#include "cpu/cell/backward.h"
#include "cpu/cell/forward.h"

namespace revdeq::cpu {

// `body.template operator()<Act, State>()` for the activation and state of the call.
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

template <class Products>
void forward_cell(const ForwardCall& call, Next& next) {
  int64_t tile = next++;
  if (tile >= call.tiles()) return;
  with_act_and_state<typename Products::Lanes>(call, [&]<class Activation, class State>() {
    ForwardTiles<Products, Activation, State> tiles(call);
    for (; tile < call.tiles(); tile = next++) tiles.run(tile);
  });
}

template <class Products>
void backward_cell(const BackwardCall& call, Next& next) {
  int64_t group = next++;
  if (group >= call.groups()) return;
  with_act_and_state<typename Products::Lanes>(call, [&]<class Activation, class State>() {
    BackwardTiles<Products, Activation, State> tiles(call);
    for (; group < call.groups(); group = next++) {
      float* sum = call.group_sums + group * call.sum_size();
      std::fill_n(sum, call.sum_size(), 0.0f);
      call.distances[group] = 0;
      call.lost_rows[group] = 0;
      for (int64_t tile = call.first_tile(group); tile < call.first_tile(group + 1); ++tile)
        tiles.run(tile, sum, call.distances[group], call.lost_rows[group]);
    }
  });
}

template <class Products>
CellKernels cell_kernels(const char* instruction_set) {
  return {instruction_set,
          Products::kBlock,
          Products::packed_bytes,
          Products::template pack<true>,
          Products::template pack<false>,
          forward_cell<Products>,
          backward_cell<Products>,
          sum_groups<typename Products::Lanes>};
}

}  // namespace revdeq::cpu
