// The chunks of a residual (residual.h), for any kind of lanes of doubles.
#pragma once
#include "cpu/float_pairs.h"
#include "cpu/kernels.h"

namespace revdeq::cpu {

// Adds the right half of the columns to the left half until one is left.
REVDEQ_INLINE Squares halve(double (&difference)[kColumns], double (&size)[kColumns]) {
  for (int half = kColumns / 2; half > 0; half /= 2) {
    for (int column = 0; column < half; ++column) {
      difference[column] += difference[column + half];
      size[column] += size[column + half];
    }
  }
  return {difference[0], size[0]};
}

template <class Lanes, class Z, class F>
void residual_range(const ResidualCall& call, int64_t begin_chunk, int64_t end_chunk) {
  const Z* z = static_cast<const Z*>(call.z);
  const F* f = static_cast<const F*>(call.f);
  double difference[kColumns], size[kColumns];
  for (int64_t chunk = begin_chunk; chunk < end_chunk; ++chunk) {
    if ((chunk + 1) * kChunk <= call.numel) {
      for (int column = 0; column < kColumns; column += Lanes::kWidth) {
        SquaresOf<Lanes> sum;
        for (int row = 0; row < kRows; ++row) {
          const int64_t i = chunk * kChunk + row * kColumns + column;
          sum.add(Lanes::load(z + i), Lanes::load(f + i));
        }
        Lanes::store(difference + column, sum.difference);
        Lanes::store(size + column, sum.size);
      }
    } else {
      Squares columns[kColumns];
      for (int64_t i = chunk * kChunk; i < call.numel; ++i)
        columns[i % kColumns].add(static_cast<double>(Storage<Z>::widen(z[i])),
                                  static_cast<double>(Storage<F>::widen(f[i])));
      for (int column = 0; column < kColumns; ++column) {
        difference[column] = columns[column].difference;
        size[column] = columns[column].size;
      }
    }
    call.sums[chunk] = halve(difference, size);
  }
}

template <class DoubleLanes>
ResidualKernel select_residual(Number z, Number f) {
  return select_float_pair<ResidualKernel>(
      z, f, []<class Z, class F>() -> ResidualKernel { return residual_range<DoubleLanes, Z, F>; });
}

}  // namespace revdeq::cpu
