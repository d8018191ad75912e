# Commands for development; `make help` lists them. They need python3 with venv and headers, and g++
# (tools/prerequisites.py names what is missing); nvcc is used if it is there. What they install and
# build goes into $(VENV), build/ and revdeq_kernels/*.so.

PYTHON ?= python3
VENV ?= .venv
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# With `VENV=` everything runs in $(PYTHON) itself, which must hold torch and the tools already.
BIN := $(if $(VENV),$(VENV)/bin/,)
PY := $(if $(VENV),$(BIN)python,$(PYTHON))
STATE := $(or $(VENV),build)
JOBS := $(shell n=$$(getconf _NPROCESSORS_ONLN 2> /dev/null || echo 1); echo $$((n < 4 ? n : 4)))

SOURCES := $(shell find csrc) $(wildcard build_backend/*.py) \
  setup.py pyproject.toml revdeq_kernels/__init__.py
# Where setup.py leaves what the checks of the CUDA kernels read.
PTXAS_LOG = build/$$($(PY) -c 'import sys; print(sys.implementation.cache_tag)')/ptxas.log
CUDA_LIBRARY := revdeq_kernels/librevdeq_cuda.so
BUILD_SETTINGS := $(REVDEQ_BUILD_CUDA)|$(REVDEQ_SANITIZE)|$(TORCH_CUDA_ARCH_LIST)|$(CUDA_HOME)|$(CXX)|$(REVDEQ_BUILD_CPP)

.PHONY: help bench readme test slow nightly check build docs screenshots cuda-report docs-table triton-aot cell-record oldest-torch newest \
  sanitize install-check wheel clean settings

help:  ## list these commands
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/' | expand -t 16
	@echo "Variables: PYTHON=python3.12, VENV=folder ('VENV=' uses PYTHON as it is), ARGS for pytest or bench, JOBS=1 for one test at a time"

bench: $(STATE)/.built  ## run all benchmarks in minutes; ARGS="--full" in full, ARGS=--list lists them
	$(PY) -m bench $(ARGS)

readme: $(STATE)/.built  ## write the figures in the documents from bench/results/
	$(PY) -m bench.show.readme

test: $(STATE)/.built  ## run the tests of the default tier, JOBS files at once (default: a core each, up to 4)
	$(PY) -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

slow: $(STATE)/.built  ## run the tests that take more than a few seconds
	$(PY) -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder -m slow $(ARGS)

nightly: $(STATE)/.built  ## 10^5 calls with arbitrary arguments, 10^4 train steps: minutes
	$(PY) -m pytest -m nightly $(ARGS)

check: $(STATE)/.tools  ## lint, formats, types, and what may import what
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	find csrc tests tools -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \
	  | xargs $(BIN)clang-format --dry-run --Werror
	$(PY) -m pyright --pythonpath $(PY)
	if [ -x "$$(command -v $(BIN)lint-imports)" ]; then PYTHONPATH=python:. $(BIN)lint-imports; \
	else echo "import-linter needs python 3.11: what imports what was not checked"; fi

build: $(STATE)/.built  ## build and install the package, editable

# Strict: a warning is an error. mkdocstrings reads the sources: nothing has to be built.
docs: $(STATE)/.tools  ## build the documentation, as a site in build/docs; every warning is an error
	if $(PY) -c 'import mkdocs' 2>/dev/null; then NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict; \
	else echo "mkdocs needs python 3.11: the site was not built"; fi

screenshots: docs  ## look at the site in Chromium at three widths: build/screenshots, and what does not fit
	$(PY) -m tools.screenshots

cuda-report: $(STATE)/.built  ## registers, spills, widths and loads ahead of the CUDA kernels; checks docs/
	$(PY) -m tools.cuda.ptxas $(PTXAS_LOG)
	$(PY) -m tools.cuda.sass $(CUDA_LIBRARY)
	$(PY) -m tools.cuda.resources --check $(PTXAS_LOG) $(CUDA_LIBRARY)
	$(PY) -m bench.show.readme --check

docs-table: $(STATE)/.built  ## write docs/resources.json from this build, and the documents' figures
	$(PY) -m tools.cuda.resources --write $(ARGS) $(PTXAS_LOG) $(CUDA_LIBRARY)
	$(PY) -m bench.show.readme

triton-aot: $(STATE)/.built  ## compile the Triton kernels for every architecture, without a GPU
	.ci/triton_aot.sh $(PY)

cell-record: $(STATE)/.built  ## write docs/cell.json: what the cell's Triton and Gluon kernels take
	$(PY) -m tools.aot.compile --only " cell " --record

sanitize: $(STATE)/.built  ## test the CPU kernels under the address and undefined-behaviour sanitizers
	.ci/sanitize.sh $(PY) $(JOBS)

oldest-torch: $(STATE)/.tools  ## compile against the headers of the oldest torch supported
	.ci/oldest_torch.sh $(PY)

newest: $(STATE)/.built  ## the default tier with the newest torch and triton: what is new among failures and warnings
	.ci/newest.sh $(PY) $(JOBS) $(ARGS)

install-check: $(STATE)/.built  ## install in every supported way, each into an environment of its own
	.ci/install_check.sh $(PY) $(JOBS)

wheel: $(STATE)/.tools  ## build a wheel for distribution, into dist/: manylinux, or any with REVDEQ_BUILD_CPP=0
	source=$$(mktemp -d); trap 'rm -rf "$$source"' EXIT; \
	.ci/copy_tree.sh "$$source"; .ci/wheel.sh $(abspath $(PY)) "$$source" dist

clean:  ## remove what was built and installed here
	rm -rf .venv build dist *.egg-info revdeq_kernels/*.so

# An environment without pip is half-made: `python3 -m venv` leaves one where python3-venv is missing.
$(STATE)/.tools: constraints.txt
ifneq ($(VENV),)
	@$(PYTHON) tools/prerequisites.py "$(VENV)"
	@echo "installing torch and the pinned tools into $(VENV): minutes, once; 2.5 GB, or 6 GB with a CUDA build of torch"
	$(PY) -m pip --version > /dev/null 2>&1 || $(PY) -m ensurepip > /dev/null 2>&1 \
	  || if [ -e $(VENV)/pyvenv.cfg ]; then $(PYTHON) -m venv --clear $(VENV); else $(PYTHON) -m venv $(VENV); fi
	grep -v '^triton==' constraints.txt | $(PY) -m pip install --quiet --requirement /dev/stdin
	$(PY) -c 'import triton' 2>/dev/null \
	  || grep '^triton==' constraints.txt | $(PY) -m pip install --quiet --requirement /dev/stdin
endif
	mkdir -p $(STATE) && touch $@

# The file's time changes with the settings, so that a build with other settings follows.
$(STATE)/.settings: settings
	@mkdir -p $(STATE) && echo '$(BUILD_SETTINGS)' | cmp --silent - $@ || echo '$(BUILD_SETTINGS)' > $@

$(STATE)/.built: $(STATE)/.tools $(STATE)/.settings $(SOURCES)
	@echo "building the package: a few minutes the first time"
	$(PY) -m pip install --no-build-isolation --no-deps --editable .
	touch $@
