# Every target works on a fresh machine with Python 3.11 or newer (with venv and pip) and make.
# Variables: PYTHON (the interpreter that makes the environment), JOBS (parallel test processes),
# ARGS (passed on to pytest, the demo or the benchmarks).

PYTHON ?= python3
JOBS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long test-containers lint format bench clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

setup: $(STAMP) ## make .venv and install fleetlm with its development tools

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "fleetlm needs Python 3.11 or newer; '$(PYTHON)' is not. Say: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Setting up $(VENV) (once) ..."
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## show a cluster form on this machine, in about 20 seconds
	@$(BIN)/fleetlm demo $(ARGS)

test: $(STAMP) ## every test that needs neither minutes nor Docker
	$(PYTEST) -n $(JOBS) --dist loadfile -m "not long and not containers" $(ARGS)

test-long: $(STAMP) ## tests that take minutes: full lengths on real sockets
	$(PYTEST) -n $(JOBS) -m "long and not containers" $(ARGS) tests/sim
	$(PYTEST) -m "long and not containers" $(ARGS) --ignore=tests/sim

test-containers: $(STAMP) ## a real cluster with Docker Compose; REQUIRE_DOCKER=1: no engine is a failure
	$(PYTEST) -p no:xdist -m containers $(ARGS) tests/containers

lint: $(STAMP) ## ruff, the format and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## apply ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## the benchmarks, each beside a floor in plain pyzmq
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove .venv and caches
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
