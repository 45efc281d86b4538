# `make run` and `make ci` each work alone on a fresh Debian-like machine with Python 3.11 or newer.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
BIN := .venv/bin
QUICKSTART_ARGS ?=
PYTEST_ARGS ?=

.PHONY: help run ci setup test soak sanitize bench lint format types imports lock clean

help: ## show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: ## set everything up and run the Reacher arm end to end (QUICKSTART_ARGS="--once --json")
	@scripts/setup.sh run $(if $(findstring native,$(QUICKSTART_ARGS)),native)
	@exec $(BIN)/python examples/reacher/quickstart.py $(QUICKSTART_ARGS)

ci: setup lint types imports sanitize test ## everything that CI checks
	@echo "ci: all checks passed"

setup:
	@scripts/setup.sh dev

test: setup ## all tests, with every real peer
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

soak: setup ## the fault tests at full length, about fifteen minutes: kills, cuts, full disks, retries, mutations
	TG_TEST_SOAK=1 $(BIN)/python -m pytest --timeout 1800 -rP tests/system/test_*_faults.py \
	  tests/attacks/test_gateway_mutations.py tests/attacks/test_pack_mutations.py $(PYTEST_ARGS)

sanitize: setup ## the native runtime's self-test under AddressSanitizer and UndefinedBehaviorSanitizer
	PATH=$(CURDIR)/$(BIN):$$PATH $(MAKE) -C native sanitize

bench: setup ## the inference bench
	$(BIN)/tensorguard bench inference

lint: setup ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## let ruff rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup ## mypy, strict
	$(BIN)/mypy

imports: setup ## the import contracts
	$(BIN)/lint-imports --no-cache

lock: setup ## resolve the hash-pinned locks anew
	scripts/lock.sh

clean: ## remove what the targets made
	rm -rf native/build .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .home
