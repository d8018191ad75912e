#!/usr/bin/env bash
# Compile the sources against the headers of the oldest torch that the package supports.
#
#   .ci/oldest_torch.sh PYTHON
#
# The headers come from torch's macOS wheel, by far the smallest; they are the same on all platforms.
set -euo pipefail
python=$1
cd "$(dirname "${BASH_SOURCE[0]}")/.."

oldest=$(sed -nE 's/^  "torch>=([0-9.]+)",$/\1.0/p' pyproject.toml)
headers=build/headers-torch-$oldest
if [ ! -d "$headers/torch/include" ]; then
  mkdir -p "$headers"
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 \
    --platform macosx_11_0_arm64 --dest "$headers" "torch==$oldest"
  "$python" -m zipfile --extract "$headers"/torch-*.whl "$headers/wheel"
  mv "$headers/wheel/torch" "$headers/torch"
  rm -r "$headers/wheel" "$headers"/torch-*.whl
fi

common=(-std=c++20 -fvisibility=hidden -DTORCH_TARGET_VERSION=0x020b000000000000 -Icsrc)
facts=()
for name in VERSION BUILT_WITH_TORCH CUDA_ARCHS NVCC_VERSION SANITIZE; do
  facts+=("-DREVDEQ_$name=\"\"")
done
for source in csrc/schema.cpp csrc/cpu/backend.cpp csrc/cpu/cell_ops.cpp; do
  echo "$source with the headers of torch $oldest"
  "${CXX:-g++}" "${common[@]}" "${facts[@]}" -fsyntax-only \
    -isystem "$headers/torch/include" "$source"
done
if [ "${REVDEQ_BUILD_CUDA:-auto}" = 0 ]; then
  echo "skipping the CUDA sources (REVDEQ_BUILD_CUDA=0)"
  exit 0
fi
nvcc=$(command -v nvcc || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")
for source in csrc/cuda/*.c*; do
  echo "$source with the headers of torch $oldest"
  "$nvcc" "${common[@]/-fvisibility=hidden/-Xcompiler=-fvisibility=hidden}" -DUSE_CUDA=1 -isystem "$headers/torch/include" -arch=sm_80 -O0 --ptx \
    "$source" -o /dev/null
done
