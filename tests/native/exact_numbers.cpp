// csrc/exact_step.h as a Python module, for test_exact_numbers.py.
#include <pybind11/pybind11.h>

#include "exact_step.h"

PYBIND11_MODULE(exact_numbers, m) {
  m.def("exact_q", &revdeq::exact_q);
  m.def("effective_keep", &revdeq::effective_keep);
  m.def("digit_base", &revdeq::digit_base);
  m.def("digits_per_byte", &revdeq::digits_per_byte);
  m.def("block_count", &revdeq::block_count);
}
