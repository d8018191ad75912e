#!/usr/bin/env bash
# Compile the Triton kernels with the pinned triton of $1 (a python) and with the newest on the index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$1

"$python" -m tools.aot.compile

newest=build/triton-newest
[ -x $newest/bin/python ] || "$python" -m venv $newest
$newest/bin/python -m pip install --quiet --upgrade triton
$newest/bin/python -m tools.aot.compile
