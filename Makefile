# `make` says what there is. Every target installs what it needs into .venv first.

# What .venv is made with: 3.11 or newer.
PYTHON ?= python3
VENV := .venv
# Processes that the tests run in; each computes with one thread.
JOBS ?= 2
BIN := $(VENV)/bin
# Where the environment forbids bytecode, each of the many processes that tests start compiles PyTorch again, for seconds.
export PYTHONDONTWRITEBYTECODE :=
STAMP := $(VENV)/.installed
EXTRAS_STAMP := $(VENV)/.installed-extras

# What a finished install is good for: this place, because .venv holds absolute paths, and these requirements.
SIGNATURE = $(CURDIR) $$(cat pyproject.toml constraints.txt | cksum)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-extras installs test-all gpu gpu-carry lint types format docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Without --no-compile pip spends half a minute on bytecode, most of it of modules that nobody imports.
install: ## make .venv, or bring it up to date; PYTHON=python3.12 chooses the interpreter of a new one
	@if [ -f $(STAMP) ] && [ "$$(cat $(STAMP))" = "$(SIGNATURE)" ] && $(BIN)/python -c '' 2>/dev/null; then exit 0; fi; \
	set -e; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: tarflow needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1);" \
			"try: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }; \
	if [ ! -f $(STAMP) ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "make: a new $(VENV); the first install takes a few minutes"; $(PYTHON) -m venv --clear $(VENV); fi; \
	rm -f $(STAMP); \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev,docs]'; \
	echo "$(SIGNATURE)" > $(STAMP)

demo: install ## train on the embedded digits, score, sample, denoise, and draw what came along; results in demo/
	$(BIN)/tarflow demo --out demo

test: install ## every test but the slow ones and those of optional packages
	$(BIN)/python -m pytest -m "not slow and not extra" -n $(JOBS) --dist worksteal

# pytest says 5 where there is nothing to run, as without the official repository, which some need.
test-slow: install ## the slow tests
	$(BIN)/python -m pytest -m "slow and not extra" tests -n $(JOBS) || [ $$? -eq 5 ]

# In the same .venv, on top of what is there. Tests whose package or browser is missing skip, and say which it is.
test-extras: install ## the tests of what is optional (the page, the hub …), with its packages; some want Chromium
	@if [ ! -f $(EXTRAS_STAMP) ] || [ "$$(cat $(EXTRAS_STAMP))" != "$(SIGNATURE)" ]; then set -e; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev,docs,all]'; \
		echo "$(SIGNATURE)" > $(EXTRAS_STAMP); fi
	$(BIN)/python -m pytest -m extra tests -n $(JOBS) --dist worksteal || [ $$? -eq 5 ]

installs: install ## wheel and sdist in new environments, each extra alone; PYTHONS="python3.12 …"
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python -m benchmarks.installs --dist dist --out dist/installs.json --python $(or $(PYTHONS),$(BIN)/python)

test-all: install ## every test
	$(BIN)/python -m pytest

# Where there is a GPU there may be no network, and no .venv: then any Python with torch will do.
gpu: ## tests, sampling, training and CIFAR-10 on a CUDA device, in eight minutes; ARGS="--parts tests" and the like
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m benchmarks.gpu $(ARGS); else $(PYTHON) -m benchmarks.gpu $(ARGS); fi

gpu-carry: install ## what that needs on a bare machine, in gpu-carry/; OFFICIAL=DIR IMAGES=FILE.parquet
	$(BIN)/python -m benchmarks.gpu_carry $(if $(OFFICIAL),--official $(OFFICIAL)) $(if $(IMAGES),--images $(IMAGES))

lint: install ## style, and whether the code is formatted
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## the type checker
	$(BIN)/mypy

format: install ## format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install ## the pages in docs/, as HTML in docs/_build; every warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build

clean: ## remove what builds and tests leave; .venv, runs/ and demo/ stay
	rm -rf build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +
