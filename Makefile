# make demo | test-fast | test | test-all | lint | docs | check | clean        (make help says more)
#
# VENV=DIR      where the environment lies (default .venv)
# PYTHON=FILE   the Python 3.10 to 3.14 that makes it (default: the first one found)
# ARGS='...'    more arguments for pytest, for example ARGS='-k packaging'
# JOBS=N        tests at a time (default: the number of cores)
# THREADS=N     threads of one process (default 1: the networks of demo and tests are too small for more)
# PIP_ARGS='..' more arguments for pip, for example an index of CPU builds of torch
VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3 python3.13 python3.12 python3.14 python3.10 python; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null && echo $$p && break; done)
ARGS ?=
PIP_ARGS ?=
JOBS ?= auto
THREADS ?= 1

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt
# One name for each checkout: the environment holds a link to the checkout that set it up last.
CHECKOUT := $(shell pwd | cksum | cut -d' ' -f1)
RUN := $(VENV)/.ready-to-run-$(CHECKOUT)
TEST := $(VENV)/.ready-to-test-$(CHECKOUT)
SUPPORTED = import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 14) or sys.exit( \
	f"recbole_qbert needs Python 3.10 to 3.14, but {sys.executable} is {v[0]}.{v[1]}.\n" \
	"Say which one to use: make PYTHON=/path/to/python3.11 VENV=.venv311")

export OMP_NUM_THREADS := $(THREADS)
export MKL_NUM_THREADS := $(THREADS)
export OPENBLAS_NUM_THREADS := $(THREADS)
# With THREADS=2, threads that wait give up their core, after a little while; spinning on, beside a busy process, is 16 times slower.
ifndef OMP_WAIT_POLICY
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT ?= 20000
endif

.PHONY: help setup demo test-fast test test-all lint docs check clean which-python
.DELETE_ON_ERROR:

help:
	@echo 'make demo      synthetic raw data through every stage, next to two baselines'
	@echo 'make test-fast tests that start no process and train no model: less than a minute'
	@echo 'make test      everyday tests;  ARGS="-k packaging" for some of them'
	@echo 'make test-all  these and the slow ones (and gpu, where there is one)'
	@echo 'make lint      ruff, ruff format, import contracts, mypy'
	@echo 'make docs      the site, into build/site/'
	@echo 'make check     lint and test'
	@echo 'make clean     remove .venv and what builds and tools left'
	@echo 'Each sets up $(VENV) first if it is not there or setup.py or constraints.txt changed.'

setup: $(TEST)

demo: $(RUN)
	@$(BIN)/python run_recbole_qbert.py $(ARGS)

test-fast: setup
	@$(BIN)/python -m pytest -q -n $(JOBS) -m 'not process and not pipeline and not slow and not gpu' $(ARGS)

test: setup
	@$(BIN)/python -m pytest -q -n $(JOBS) $(ARGS)

test-all: setup
	@$(BIN)/python -m pytest -q -n $(JOBS) -m '' $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

docs: setup
	$(BIN)/mkdocs build --strict

check: lint test

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

which-python:
	@echo $(PYTHON)

$(RUN): setup.py constraints.txt
	@$(BIN)/python -c '' 2>/dev/null || { \
	  [ -n "$(PYTHON)" ] || { echo 'No Python 3.10 to 3.14 found. Install one, or name it: make PYTHON=/path/to/python3.11' >&2; exit 1; }; \
	  $(PYTHON) -c '$(SUPPORTED)' || exit 1; \
	  echo "[1/3] new environment $(VENV) with $$($(PYTHON) -V)"; \
	  $(PYTHON) -m venv "$(VENV)" >/dev/null 2>&1 \
	  || $(PYTHON) -m virtualenv --quiet "$(VENV)" 2>/dev/null \
	  || { $(PYTHON) -m venv --without-pip "$(VENV)" && $(PYTHON) -m pip --quiet --python "$(BIN)/python" install pip; } \
	  || { echo '$(PYTHON) can make no environment. On Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }; }
	@$(BIN)/python -c '$(SUPPORTED)'
	@echo '[2/3] torch: a download of 200 MB (CPU build) to 3 GB (CUDA build), once'
	@$(PIP) setuptools wheel torch
	@echo '[3/3] RecBole and the rest'
	@$(PIP) --no-build-isolation --editable .
	@# From Python 3.12 on RecBole comes without ray, of which it accepts no version there.
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 12))' || exit 0; $(PIP) --no-deps recbole==1.2.1
	@rm -f $(VENV)/.ready-* && touch $@

$(TEST): $(RUN)
	@echo 'what the tests need besides: encoders, PySpark (a download of 400 MB, once), tools'
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@
