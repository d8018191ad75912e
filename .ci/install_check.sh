#!/usr/bin/env bash
# Install the package in every supported way, each into its own environment, and run it there.
# $1: a python with torch and the build tools; the environments see its packages.
# $2: the number of test files to run in parallel.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(cd "$root" && realpath --no-symlinks "$1")
jobs=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
src=$work/source
cd "$root"
PATH=$(dirname "$python"):$PATH  # use one ninja throughout: another version recompiles everything
cuda=$("$python" -c 'from revdeq_kernels.core import libraries; print(libraries.build_info()["cuda_archs"])')
one=${cuda:+9.0a}  # for one architecture: `make build` has compiled the kernels for all of them

say() { echo "-- $*"; }
fail() { echo "install_check: $*" >&2; exit 1; }

# new_env NAME: a virtual environment that sees the packages of $python. The setuptools that some
# pythons put into a new environment is too old and would take precedence, so it is removed.
new_env() {
  "$python" -m venv "$work/$1"
  "$work/$1/bin/python" -m pip uninstall --quiet --yes setuptools 2> /dev/null
  "$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' \
    > "$("$work/$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"
}

# pip_in NAME ARGS...: run pip; print its whole log if it fails. It must not install another torch or
# triton, not even for the build.
pip_in() {
  local log=$work/$1.log
  "$work/$1/bin/python" -m pip --verbose "${@:2}" > "$log" 2>&1 || { cat "$log"; fail "pip ${*:2}"; }
  ! grep -E 'Installing collected packages:.* (torch|triton)(,|$)' "$log" \
    || fail "pip ${*:2} installed another torch or triton"
}

# imports NAME FOLDER ARCHS: check that the package is imported from FOLDER, contains CUDA code for
# ARCHS, and works.
imports() { (cd "$work" && "$work/$1/bin/python" "$root/tools/check_installed.py" "$2" "$3"); }

# tests_in NAME TESTS...: run tests/TEST.py on the package installed there, outside of the tree.
tests_in() {
  local run=$work/tests-$1 files=("${@:2}")
  files=("${files[@]/#/tests/}")
  mkdir "$run"
  cp -r tests pyproject.toml "$run"
  (cd "$run" && "$work/$1/bin/python" -m pytest --quiet -p no:cacheprovider -o pythonpath= \
    --numprocesses "$jobs" --dist loadfile "${files[@]/%/.py}") || fail "the tests in $1"
}

say "copy the tree, without build outputs"
.ci/copy_tree.sh "$src"

say "pip install ., isolated, with $("$python" -m pip --version | cut -d' ' -f1,2)"
new_env isolated
TORCH_CUDA_ARCH_LIST=$one pip_in isolated install "$src"
imports isolated "$work/isolated" "$one"

say "pip install --no-build-isolation -e ., with a module left over from an earlier build"
former=$src/revdeq_kernels/_C.cpython-311-x86_64-linux-gnu.so
touch "$former"
new_env editable
TORCH_CUDA_ARCH_LIST=$one pip_in editable install --no-build-isolation --no-deps --editable "$src"
imports editable "$src" "$one"
[ ! -e "$former" ] || fail "$former is still there"

say "an unchanged tree compiles nothing, a changed header recompiles the files that include it"
TORCH_CUDA_ARCH_LIST=$one pip_in editable install --no-build-isolation --no-deps --editable "$src"
grep -q 'ninja: no work to do' "$work/editable.log" || fail "an unchanged tree was compiled again"
touch "$src/csrc/half_step.h"
stale=$(ninja -C "$src"/build/cpython-*/ -n)
grep -q 'csrc/cpu/' <<< "$stale" || fail "a changed half_step.h does not recompile csrc/cpu: $stale"

say "a wheel without CUDA, from a tree with the libraries of the previous builds"
if [ -n "$cuda" ]; then
  ls "$src"/build/lib*/revdeq_kernels/librevdeq_cuda.so "$src/revdeq_kernels/librevdeq_cuda.so" > /dev/null
fi
new_env wheel
REVDEQ_BUILD_CUDA=0 .ci/wheel.sh "$python" "$src" "$work/cpu"
ls "$work"/cpu/*manylinux*.whl > /dev/null || fail "the wheel is not tagged manylinux"
"$python" tools/check_wheel.py "$work"/cpu/*.whl ""
pip_in wheel install --no-deps "$work"/cpu/*.whl
imports wheel "$work/wheel" ""
tests_in wheel ops/test_{half_step,exact,registration} solver/adjoints/test_gradients

say "a pure Python wheel, which needs no compiler"
new_env pure
CXX=/no/compiler REVDEQ_BUILD_CPP=0 REVDEQ_BUILD_CUDA=0 .ci/wheel.sh "$python" "$src" "$work/any"
"$python" tools/check_wheel.py "$work"/any/*-none-any.whl pure
pip_in pure install --no-deps "$work"/any/*.whl
REVDEQ_BACKEND=reference tests_in pure ops/test_reference solver/adjoints/test_gradients

say "an sdist, and a wheel built from it for one architecture, isolated, with the newest pip"
(cd "$src" && PYTHONPATH=build_backend "$python" -c \
  'import sys, revdeq_build; revdeq_build.build_sdist(sys.argv[1])' "$work/sdist") > "$work/sdist.log" 2>&1 \
  || { cat "$work/sdist.log"; fail "build_sdist"; }
new_env sdist
pip_in sdist install --upgrade pip
TORCH_CUDA_ARCH_LIST=$one pip_in sdist wheel --no-deps -w "$work/dist" "$work"/sdist/*.tar.gz
"$python" tools/check_wheel.py "$work"/dist/*.whl "$one"
pip_in sdist install "$work"/dist/*.whl
imports sdist "$work/sdist" "$one"
