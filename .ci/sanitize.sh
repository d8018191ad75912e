#!/usr/bin/env bash
# Run the tests of the CPU kernels on a build under the address and undefined-behaviour sanitizers.
# $1: a python that has torch and the tools; $2: how many files are tested at once.
# A copy in build/sanitize is built, the tree stays.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(realpath --no-symlinks "$1")
jobs=$2
compiler=${CXX:-g++}

rm -rf build/sanitize
.ci/copy_tree.sh build/sanitize
cd build/sanitize
REVDEQ_SANITIZE=address,undefined REVDEQ_BUILD_CUDA=0 "$python" setup.py --quiet build_ext --inplace
for symbol in __asan_report_load __ubsan_handle; do
  nm --dynamic revdeq_kernels/librevdeq_cpu.so | grep "$symbol" > /dev/null \
    || { echo "sanitize: no $symbol in the library: it is not instrumented" >&2; exit 1; }
done

export LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0  # the interpreter leaves its own
export UBSAN_OPTIONS=print_stacktrace=1
"$python" -c 'from revdeq_kernels.core import libraries; assert libraries.build_info()["sanitize"], libraries.CPU'
# What starts processes, compiles, measures or trains is left out: it calls the same kernels, slowly.
# So is what calls no C++ of this build: Gluon in Triton's interpreter, programs with sanitizers of their own.
left_out=()
for name in bench distributed models native project ptx training \
  solver/test_{soak,composes,foreign,memory}.py solver/compile solver/adjoints/test_functional.py; do
  ls "tests/$name" > /dev/null  # pytest would not say that it is gone
  left_out+=(--ignore "tests/$name")
done
# --capture=sys: pytest would swallow the report of a test that aborts, if it took the descriptors too.
"$python" -m pytest -p no:cacheprovider --capture=sys --numprocesses "$jobs" --dist loadfile \
  --max-worker-restart 0 -k "not triton and not gluon" "${left_out[@]}" tests
