#!/usr/bin/env bash
# Run the tests of the CPU kernels on a build with the address and undefined-behavior sanitizers.
# $1: a python with torch and the tools; $2: the number of test files to run in parallel.
# Builds a copy in build/sanitize; the tree is not changed.
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
export ASAN_OPTIONS=detect_leaks=0  # the interpreter itself leaks
export UBSAN_OPTIONS=print_stacktrace=1
"$python" -c 'from revdeq_kernels.core import libraries; assert libraries.build_info()["sanitize"], libraries.CPU'
# Tests that start processes, compile, measure or train are skipped: they call the same kernels, slowly.
# So are tests that call no C++ of this build: Gluon in Triton's interpreter, and programs with their own
# sanitizers.
left_out=()
for name in bench distributed models native project ptx training \
  solver/test_{soak,composes,foreign,memory}.py solver/compile solver/adjoints/test_functional.py; do
  ls "tests/$name" > /dev/null  # pytest would not report a missing path
  left_out+=(--ignore "tests/$name")
done
# --capture=sys: if pytest captured file descriptors too, it would swallow the report of an aborting test.
"$python" -m pytest -p no:cacheprovider --capture=sys --numprocesses "$jobs" --dist loadfile \
  --max-worker-restart 0 -k "not triton and not gluon" "${left_out[@]}" tests
