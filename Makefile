# Every target sets up what it needs: a machine with Python 3.11 or later and make is enough.
# `make` alone lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# Two targets at once would install into one environment at once.
.NOTPARALLEL:

PYTHON ?=                 ## the interpreter to build .venv with (default: the first that works)
PYTEST_ARGS ?=            ## further arguments for pytest
HOSTILE_ARGS ?=           ## further arguments for the hostile suite
BENCHMARKS ?= benchmarks/sandbox.py benchmarks/roundtrip.py

PARTS := common broker client worker dashboard
VENV := .venv
BIN := $(VENV)/bin
# Inside the environment, so that deleting .venv forgets them too.
STAMPS := $(VENV)/.stamps
# uv_build looks for its program on PATH.
PIP := PATH="$(abspath $(BIN)):$$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1 $(BIN)/python -m pip --quiet
MANIFESTS := pyproject.toml $(PARTS:%=%/pyproject.toml)
CHECKED := $(wildcard $(PARTS) src tests tools benchmarks examples)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-13s %s\n", $$1, $$2 }'
	@grep -hE '^[A-Z_]+ \?=.*## ' $(MAKEFILE_LIST) | awk -F ' *[?]= *## ' '{ printf "  %-18s %s\n", $$1 "=", $$2 }'

.PHONY: demo
demo: $(STAMPS)/run ## run the demonstration, without a broker to install
	$(BIN)/fumehood demo

.PHONY: test
test: $(STAMPS)/test rabbitmq ## run all tests; installs rabbitmq-server if there is none
	$(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: hostile
hostile: $(STAMPS)/test ## run every hostile job: both profiles, as root and as uid 65534, with mechanisms masked
	PYTHONPATH=tests $(BIN)/python -m hostile.matrix --busy $(HOSTILE_ARGS)

# The cheap checks come first, so that a slip is reported within a second.
.PHONY: check
check: $(STAMPS)/check ## formatting, lint, layers, sizes and types
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python tools/budgets.py
	$(BIN)/mypy $(CHECKED)
	$(BIN)/pyright

.PHONY: format
format: $(STAMPS)/check ## rewrite the code as check wants it
	$(BIN)/ruff check --fix-only $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

.PHONY: bench
bench: $(STAMPS)/test rabbitmq ## run the benchmarks
	for benchmark in $(BENCHMARKS); do $(BIN)/python "$$benchmark"; done

.PHONY: wheels
wheels: $(STAMPS)/run ## build the six wheels into dist/
	@$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist . $(PARTS:%=./%)
	ls dist

.PHONY: clean
clean: ## delete the environment, builds and caches
	rm -rf $(VENV) benchmarks/.venvs dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find $(CHECKED) -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: requirements
requirements: $(STAMPS)/check ## pin the newest versions that requirements/*.in allow
	for set in run test check bench-asyncmq bench-pebble bench-rq; do \
		$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
			--no-annotate --no-emit-index-url --no-emit-find-links \
			--output-file requirements/$$set.txt requirements/$$set.in >/dev/null; \
	done

.PHONY: rabbitmq
rabbitmq:
	@bash tools/rabbitmq.sh

# A shim that names no interpreter, or a Python without venv, must not win over a later one that works: each is tried.
$(STAMPS)/venv:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
		"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		echo "$(VENV): $$("$$python" --version)"; \
		$(BIN)/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv --clear $(VENV); \
		mkdir -p $(STAMPS); touch $@; exit 0; \
	done; \
	echo "fumehood needs Python 3.11 or later with venv and ensurepip (on Debian: python3 and python3-venv)." >&2; \
	echo "None of python3.11, python3.12, python3.13 and python3 is one; name yours: make PYTHON=/path/to/python" >&2; \
	exit 1

# check holds test and test holds run. Each stamp installs its own set only, so a larger set stays when a smaller is asked for.
$(STAMPS)/run $(STAMPS)/test $(STAMPS)/check: $(STAMPS)/%: requirements/%.txt $(MANIFESTS) | $(STAMPS)/venv
	@echo "$(VENV): installing $< and the packages of this checkout"
	@$(PIP) install --require-hashes -r $<
	@$(PIP) install --no-deps --no-build-isolation -e . $(PARTS:%=-e ./%)
	@touch $@
