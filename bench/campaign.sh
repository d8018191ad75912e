#!/usr/bin/env bash
# Build, test, memory-check and measure on a machine with a GPU and no network.
#
#   bench/campaign.sh --stage STAGE [--jax FOLDER] [--dry-run]
#
# The machine brings its own python, torch, triton, nvcc, ninja, pybind11, pytest, hypothesis, rich,
# matplotlib, markdown-it-py, numpy and compute-sanitizer; nothing is downloaded. Each stage ends within
# nine minutes and is called by itself, in this order, which has the most valuable figures first:
#
#   build      compile and install, say what there is
#   test       the tests that need the GPU, and some that do not
#   sanitize   the kernels under compute-sanitizer
#   cost       the cell, and a train step of every map against N
#   peers      a train step beside others; the authors' JAX library where --jax or JAX names it
#   largest    the largest N and batch that fit the card
#   overhead   the cost of a half step with a tiny f, CUDA graphs among them; the options
#   ops        every op beside what a user could write
#   profile    where the time of a step goes; Nsight Compute where there is ncu
#   error      what each format of the state does to the gradient
#
# A stage called again skips the steps that succeeded on the same sources; a failed step does not keep
# the later ones from running, but the stage then fails.
#
# PYTHON   the interpreter to use (default python3)
# JAX      the folder that --jax names: a virtual environment with jax, equinox and the authors' revdeq,
#          or a folder that `pip install --target` has put them into, for PYTHON's version
# OUT      where set, a folder that logs and results are copied to
#
# bench/out/campaign/ holds the logs and the marks of done steps; bench/results/<gpu>/ the figures.
set -u -o pipefail

stages="build test sanitize cost peers largest overhead ops profile error"
usage="usage: bench/campaign.sh --stage STAGE [--jax FOLDER] [--dry-run]; stages: $stages"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"
work="$root/bench/out/campaign"
stage=""
jax="${JAX:-}"
dry_run=0
failed=0
# Nine minutes a stage: no step starts, and none runs on, after this many seconds.
stage_seconds=520
# Logs appear as they are written, and pip asks no index for anything.
export PYTHONUNBUFFERED=1 PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1

refuse() {
  echo "bench/campaign.sh: $1" >&2
  echo "$usage" >&2
  exit 2
}

give_up() {
  echo "$stage: $1" >&2
  exit 1
}

parse_arguments() {
  while [ $# -gt 0 ]; do
    case "$1" in
      --stage)
        [ $# -ge 2 ] || refuse "--stage: expected one of $stages, got nothing"
        stage="$2"
        shift 2
        ;;
      --jax)
        [ $# -ge 2 ] || refuse "--jax: expected a folder, got nothing"
        jax="$2"
        shift 2
        ;;
      --dry-run)
        dry_run=1
        shift
        ;;
      -h | --help)
        echo "$usage"
        exit 0
        ;;
      *) refuse "unknown argument '$1'" ;;
    esac
  done
  case " $stages " in
    *" ${stage:-none} "*) ;;
    *) refuse "--stage: expected one of $stages, got '$stage'" ;;
  esac
  [ -z "$jax" ] || [ -d "$jax" ] || refuse "--jax: expected a folder, got '$jax'"
}

# A hash of everything that a result depends on; works in a copy of the tree without git too.
tree_state() {
  (
    cd "$root" || exit 1
    find csrc revdeq_kernels python bench tests setup.py pyproject.toml build_backend -type f \
      ! -path '*/__pycache__/*' ! -path 'bench/out/*' ! -path 'bench/results/*' \
      ! -name '*.so' ! -path '*.egg-info/*' -print0 2>/dev/null |
      LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16
  )
}

# The name of the GPU in letters, digits and dashes.
gpu_folder() {
  "$python" -c 'import torch; print(torch.cuda.get_device_name())' |
    sed -e 's/[^A-Za-z0-9]\{1,\}/-/g' -e 's/^-//' -e 's/-$//'
}

# The architecture to compile for: features of one chip are asked for by the letter a from Hopper on.
cuda_architecture() {
  "$python" -c 'import torch
major, minor = torch.cuda.get_device_capability()
print(f"{major}.{minor}" + ("a" if major == 9 else ""))'
}

# run_step NAME SECONDS COMMAND...: run once per state of the tree, with a log and a time limit.
run_step() {
  local name="$1" seconds="$2"
  shift 2
  if [ "$dry_run" = 1 ]; then
    printf '%s: timeout %s' "$name" "$seconds"
    printf ' %q' "$@"
    printf '\n'
    return
  fi
  local log="$work/$stage-$name.log" mark="$work/$stage-$name.$state.done" left code
  if [ -e "$mark" ]; then
    echo "$name: done before on these sources"
    return
  fi
  left=$((stage_seconds - SECONDS))
  if [ "$left" -lt 10 ]; then
    echo "$name: no time left in this stage; call it again"
    failed=1
    return
  fi
  echo "$name: $*"
  (cd "$root" && timeout -k 10 "$((left < seconds ? left : seconds))" "$@") 2>&1 | tee "$log"
  code=${PIPESTATUS[0]}
  if [ "$code" = 0 ]; then
    touch "$mark"
    echo "$name: ok after ${SECONDS} s"
  else
    echo "$name: failed with exit status $code (124: out of time); log in $log"
    failed=1
  fi
}

# compute-sanitizer stands beside nvcc, which is not always on the path.
sanitizer() {
  command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer"
}

stage_build() {
  local architecture='arch-of-the-gpu'
  if [ "$dry_run" = 0 ]; then
    architecture="$(cuda_architecture)" || give_up "torch finds no GPU"
  fi
  run_step install 480 env "TORCH_CUDA_ARCH_LIST=$architecture" REVDEQ_BUILD_CUDA=1 \
    "$python" -m pip install --no-build-isolation --no-deps -e .
  run_step info 60 "$python" -m revdeq_kernels.info
}

stage_test() {
  # The tests that need the GPU are the point; those of the CPU ops are a spot check here.
  run_step gpu 330 "$python" -m pytest -q -m gpu tests
  run_step cpu 190 "$python" -m pytest -q -m 'not gpu and not slow and not nightly' \
    tests/ops/test_{reference,half_step,exact,passes,lists}.py \
    tests/cell/test_{implementations,linear_cell}.py \
    tests/solver/{adjoints/test_gradients,evaluation/test_closure,compile/test_compile}.py \
    tests/solver/{adjoints/test_functional,test_composes}.py
}

stage_sanitize() {
  # Tests for memcheck have "sanitize" in their names: every kernel on small tensors, with tails and
  # misaligned pointers. Without torch's caching each tensor is an allocation of its own, so that an
  # access past its end is seen. pytest fails if it finds no such test.
  run_step memcheck 500 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    "$(sanitizer)" --tool memcheck --target-processes all --error-exitcode 1 \
    "$python" -m pytest -q -m gpu -k sanitize -p no:cacheprovider tests/ops/test_devices.py \
    tests/cell/test_cuda.py
}

# measure STEP SECONDS OPTIONS...: benchmarks on the GPU, in full; their lines stand beside each other.
measure() {
  local step="$1" seconds="$2"
  shift 2
  run_step "$step" "$seconds" "$python" -m bench --device cuda --full --out "$work/measured" "$@"
}

stage_cost() {
  measure cell 100 --only cell
  measure mlp-block 210 --only solve.cost --models mlp block --betas 0.5
  measure language 130 --only solve.cost --models language --append
  measure vision 70 --only solve.cost --models vision --append
  keep
}

stage_peers() {
  local with=()
  [ -z "$jax" ] || with=(--jax-python "$(jax_python)")
  # The compiled loop at N = 32 compiles for minutes; where its step ends early, its lines are kept.
  measure block 260 --only solve.peers --models block --depths 2 8 "${with[@]}"
  measure mlp 250 --only solve.peers --models mlp --depths 2 8 --append "${with[@]}"
  keep
}

stage_largest() {
  measure mlp 260 --only solve.largest --models mlp
  measure block 250 --only solve.largest --models block --append
  keep
}

stage_overhead() {
  measure overhead 200 --only solve.overhead
  measure options 310 --only solve.options
  keep
}

stage_ops() {
  measure ops 500 --only ops
  keep
}

stage_profile() {
  measure profile 120 --only solve.profile
  measure nsight 390 --only nsight
  keep
}

stage_error() {
  measure error 300 --only solve.error
  run_step report 60 "$python" -m bench.show.html "$work/measured" --out "$work/measured/report.html"
  run_step figures 60 "$python" -m bench.show.figures "$work/measured" --out "$work/measured"
  keep
}

# The interpreter that has the library: a virtual environment's own, or PYTHON with the folder on its
# path, as a program of its own, since `--jax-python` takes one.
jax_python() {
  local wrapper="$work/jax-python"
  if [ -x "$jax/bin/python" ]; then
    echo "$jax/bin/python"
    return
  fi
  if [ "$dry_run" = 0 ]; then
    printf '#!/bin/sh\nexec env PYTHONPATH=%q %q "$@"\n' "$(cd "$jax" && pwd)" \
      "$(command -v "$python")" > "$wrapper"
    chmod +x "$wrapper"
  fi
  echo "$wrapper"
}

# Store the figures that there are, also where a provider was refused or time ran out. Traces are large
# and stay.
keep() {
  local results='gpu-name'
  if [ "$dry_run" = 0 ]; then
    results="$(gpu_folder)" || give_up "torch finds no GPU"
  fi
  results="bench/results/$results"
  if [ "$dry_run" = 1 ]; then
    echo "keep: bench/out/campaign/measured/*.jsonl and figures in $results/"
  elif [ -d "$work/measured" ]; then
    mkdir -p "$root/$results"
    find "$work/measured" -maxdepth 1 \( -name '*.jsonl' -o -name '*.png' \) \
      -exec cp {} "$root/$results/" \;
  fi
}

# Copy this stage's logs and figures to $OUT: flat, few files, plain names.
# shellcheck disable=SC2329  # called by the exit trap
hand_over() {
  [ -n "${OUT:-}" ] || return 0
  mkdir -p "$OUT"
  find "$work" -maxdepth 1 -name "$stage-*.log" -exec cp {} "$OUT/" \;
  if [ -d "$work/measured" ]; then
    find "$work/measured" -maxdepth 1 -type f -exec cp {} "$OUT/" \;
  fi
}

parse_arguments "$@"
if [ "$dry_run" = 0 ]; then
  mkdir -p "$work"
  state="$(tree_state)"
  trap hand_over EXIT
  if [ "$stage" != build ] && [ ! -e "$work/build-install.$state.done" ]; then
    give_up "these sources are not built here; call bench/campaign.sh --stage build first"
  fi
fi
"stage_$stage"
exit "$failed"
