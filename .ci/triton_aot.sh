#!/usr/bin/env bash
# Compile the Triton kernels with the pinned triton of $1 (a python) and with the newest release, and run
# them in the newest interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$1

"$python" -m tools.aot.compile

newest=build/triton-newest
[ -x $newest/bin/python ] || "$python" -m venv $newest
$newest/bin/python -m pip install --quiet --upgrade triton
$newest/bin/python -m tools.aot.compile

# Also run the newest interpreter: what it accepts as a mask or dtype changes between releases.
site=$($newest/bin/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
PYTHONPATH=$site:python:. "$python" -m pytest -q -k "triton or gluon" \
  tests/cell/test_implementations.py tests/cell/test_halting.py tests/ops/test_triton_interpreter.py
