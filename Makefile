# `make serve` and `make test` each work alone on a machine with Python >= 3.11 and a C compiler.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The first interpreter that is new enough and can make virtual environments.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
  && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
HOST ?= 127.0.0.1
PORT ?= 8080
# More arguments for `visavis serve` and for pytest.
ARGS ?=
PYTEST_ARGS ?=
# Where torch comes from; empty: pip's own default. See README.md, "Without a GPU".
TORCH_INDEX ?=
# The one place that knows torch's version is pyproject.toml.
TORCH = $(shell sed -n 's/^ *"\(torch==[0-9.]*\)",$$/\1/p' pyproject.toml | head -n 1)
CODE := realtime kernels models trainer tests

.PHONY: help serve test lint types format gpu soak fuzz generated speech clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

serve: $(VENV)/.serve ## run the server: make serve PORT=8080 ARGS="--engine openvino"
	@exec $(BIN)/visavis serve --host $(HOST) --port $(PORT) $(ARGS)

test: $(VENV)/.dev ## everything a change must pass: lint, types, imports, unit and browser tests
	$(MAKE) --no-print-directory lint types
	$(BIN)/python -m pytest -m "unit or e2e" $(PYTEST_ARGS)

lint: $(VENV)/.dev ## ruff and the import contracts
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/lint-imports

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy

format: $(VENV)/.dev ## rewrite the code in the project's format
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

generated: $(VENV)/.dev ## write the files that come from other files
	$(BIN)/python -m realtime.protocol

gpu: $(VENV)/.dev ## tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

soak: $(VENV)/.dev ## tests that run for many minutes
	$(BIN)/python -m pytest -m soak --timeout=7200 $(PYTEST_ARGS)

# Of every harness.
SECONDS ?= 60
fuzz: $(VENV)/.dev ## fuzz every parser of bytes from outside: make fuzz SECONDS=60
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz.run --seconds $(SECONDS)
	VISAVIS_MALFORMED=1000 $(BIN)/python -m pytest -q --timeout=1200 tests/fuzz/test_malformed.py

speech: ## make tests/data/*.wav again (espeak-ng and flite)
	bash tests/data/make_speech.sh tests/data

clean: ## forget the virtual environment and all caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with the venv module is needed" \
	  "(Debian: apt install python3-venv); or name one: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.serve: pyproject.toml $(VENV)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.serve
