# Every target works on a fresh machine with Python 3.11 or newer (with venv and pip) and make.
# Variables: PYTHON (the interpreter that makes the environment), JOBS (parallel test processes; by default three
# for each core, since many tests wait for programs and sockets),
# LONG_JOBS (those of `make test-long`: one waits for programs while simulations compute on all cores),
# ARGS (passed on to pytest, the fuzzer or the benchmarks), FUZZ_S (seconds of fuzzing for each target).

PYTHON ?= python3
CORES := $(shell getconf _NPROCESSORS_ONLN)
JOBS ?= $(shell echo $$(( 3 * $(CORES) )))
LONG_JOBS ?= $(shell echo $$(( $(CORES) + 1 )))
ARGS ?=
FUZZ_S ?= 60

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest
TESTS := -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not long and not containers and not browser and not kits and not site"
COVERAGE_FLOOR := 80
LOCK := --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

# The tests start hundreds of programs: without cached bytecode each would compile fleetlm and its libraries anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long test-containers test-browser attacks kits site coverage coverage-core fuzz lint types reference lock hooks format bench bench-guard clean

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
	@$(BIN)/fleetlm demo

test: $(STAMP) ## every test that needs neither minutes nor Docker
	$(PYTEST) $(TESTS) $(ARGS)

test-long: $(STAMP) ## tests that take minutes: full lengths on real sockets
	$(PYTEST) -n $(LONG_JOBS) --dist worksteal -m "long and not containers and not alone" $(ARGS)
	$(PYTEST) -m "long and not containers and alone" $(ARGS)

test-containers: $(STAMP) ## a real cluster with Docker Compose; REQUIRE_DOCKER=1: no engine is a failure
	$(PYTEST) -p no:xdist -m containers $(ARGS) tests/containers

test-browser: $(STAMP) ## the page of the ops listener in a real browser; needs Chromium (Debian: apt-get install chromium)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[browser]'
	$(PYTEST) -p no:xdist -m browser $(ARGS) tests/browser

attacks: $(STAMP) ## minutes: attacks on a node, with what an honest peer notices; wants an idle machine
	$(BIN)/python -m tests.long.attacks $(ARGS)

kits: $(STAMP) ## validate the deployment kits; needs promtool and kubectl (Debian: apt-get install prometheus kubectl systemd)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[kits]'
	$(PYTEST) -p no:xdist -m kits $(ARGS) tests/kits

site: $(STAMP) ## build the documentation site, strictly, and check its links
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[site]'
	$(BIN)/python -m scripts.stage_site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(PYTEST) -p no:xdist -m site $(ARGS) tests/site

coverage: $(STAMP) ## the tests of `make test` with branch coverage of the whole package, and a floor
	$(PYTEST) $(TESTS) --cov --cov-report=term --cov-fail-under=$(COVERAGE_FLOOR) $(ARGS)

coverage-core: $(STAMP) ## unit tests must reach every branch of fleetlm/core and fleetlm/wire
	$(PYTEST) -q -n $(CORES) --cov=fleetlm/core --cov=fleetlm/wire --cov-report=term --cov-fail-under=100 \
	  --ignore-glob="*_properties.py" --ignore-glob="*_pairs.py" $(ARGS) tests/unit/core tests/unit/wire

lint: $(STAMP) ## ruff, the format, mypy and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin --no-warn-unreachable fleetlm
	$(BIN)/codespell .

types: $(STAMP) ## every public name has a type that type checkers agree on
	PATH="$(abspath $(BIN)):$$PATH" PYRIGHT_PYTHON_IGNORE_WARNINGS=1 \
	  pyright --verifytypes fleetlm --ignoreexternal

reference: $(STAMP) ## write the pages of docs/reference/ that repeat the source
	$(BIN)/python -m scripts.write_reference

lock: $(STAMP) ## write the locks with hashes of what docker/ and a release install
	$(BIN)/uv pip compile $(LOCK) --extra uvloop --output-file docker/requirements.txt pyproject.toml
	$(BIN)/uv pip compile $(LOCK) --output-file docker/build.txt docker/build.in
	$(BIN)/uv pip compile $(LOCK) --output-file docker/web.txt docker/web.in

hooks: $(STAMP) ## what pre-commit runs, on every file: also links, spelling and the workflows
	$(BIN)/pre-commit run --all-files

format: $(STAMP) ## apply ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fuzz: $(STAMP) ## coverage-guided fuzzing of all that reads bytes from outside, FUZZ_S seconds for each target
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_S) $(ARGS)

bench: $(STAMP) ## a quarter of an hour: the benchmarks beside floors and the peers that are installed; writes benchmarks/REPORT.md
	$(BIN)/python -m benchmarks --quick --repeat 5 --minutes 14 --ways --peers all --report benchmarks $(ARGS)

bench-guard: $(STAMP) ## a minute: fail if a ratio to a floor is far below what it should be
	$(BIN)/python -m benchmarks --guard --quick $(ARGS)

clean: ## remove .venv and caches
	rm -rf $(VENV) .nox .fuzz build dist htmlcov .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
