#!/usr/bin/env bash
# Run the default tier of the tests with the newest torch and triton that pip finds, in an environment
# of its own, and say what is new among failures and warnings. The package is the one that was built in
# place with the pinned torch: one build serves every later one.
#
#   .ci/newest.sh PYTHON JOBS [ARGUMENTS OF PYTEST...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
newest=build/newest
python=$newest/venv/bin/python

[ -x $python ] || "$1" -m venv $newest/venv
$python -m pip install --quiet --upgrade torch
grep -Ev '^(torch|triton)==' constraints.txt | $python -m pip install --quiet --requirement /dev/stdin
# Last, for torch asks for an older one, which pip would bring back. Not every system has it.
$python -m pip install --quiet --upgrade triton 2> /dev/null || true

export PYTHONPATH=$PWD/python:$PWD
# run NAME ARGUMENTS...: one run of the tests, of which NAME.xml remains
run() {
  $python -m pytest --numprocesses "$jobs" --dist loadfile --no-loadscope-reorder \
    -o cache_dir=$newest/cache --junitxml="$newest/$1.xml" "${@:2}" > "$newest/$1.log" 2>&1
}
jobs=$2
shift 2
rm -f $newest/*.xml
status=0
run first "$@" || status=$?
# 1: some tests failed. What a warning stopped goes on where warnings are none.
if [ "$status" = 1 ]; then
  run beyond "$@" --last-failed --last-failed-no-failures none -W default || true
elif [ "$status" != 0 ]; then
  tail -n 30 $newest/first.log
  exit "$status"
fi
$python -m tools.newest $newest
