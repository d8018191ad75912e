#!/usr/bin/env bash
# Run the default tier of the tests with the newest torch and triton that pip finds, in a separate
# environment, and report new failures and warnings. The package is the one built in place with the
# pinned torch: one build works with every later torch.
#
#   .ci/newest.sh PYTHON JOBS [ARGUMENTS OF PYTEST...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
newest=build/newest
python=$newest/venv/bin/python

[ -x $python ] || "$1" -m venv $newest/venv
$python -m pip install --quiet --upgrade torch
grep -Ev '^(torch|triton)==' constraints.txt | $python -m pip install --quiet --requirement /dev/stdin
# Last, because torch pins an older triton, which pip would reinstall. Not available on every system.
$python -m pip install --quiet --upgrade triton 2> /dev/null || true
# The metadata of the package, which is not installed here.
site=$($python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -rf "$site"/revdeq_kernels-*.dist-info
cp -r "$("$1" -c 'import importlib.metadata as m; print(m.distribution("revdeq-kernels")._path)')" "$site"

export PYTHONPATH=$PWD/python:$PWD
# run NAME ARGUMENTS...: run the tests and write NAME.xml
run() {
  $python -m pytest --numprocesses "$jobs" --dist loadfile --no-loadscope-reorder \
    -o cache_dir=$newest/cache --junitxml="$newest/$1.xml" "${@:2}" > "$newest/$1.log" 2>&1
}
jobs=$2
shift 2
rm -f $newest/*.xml
status=0
run first "$@" || status=$?
# 1: some tests failed. Rerun them with warnings that are not errors.
if [ "$status" = 1 ]; then
  run beyond "$@" --last-failed --last-failed-no-failures none -W default || true
elif [ "$status" != 0 ]; then
  tail -n 30 $newest/first.log
  exit "$status"
fi
$python -m tools.newest $newest
