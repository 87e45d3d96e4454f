# gpupack: `make` lists what there is.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := operator tests e2e

.PHONY: help install fmt lint types test verify e2e demo controlplane lock clean

help: ## List the targets.
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

$(VENV)/installed: requirements/dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

install: $(VENV)/installed ## Make .venv with gpupack in it (.venv/bin/gpupack), pinned by hash; neither vLLM nor torch.

fmt: install ## Format the code and mend what ruff can mend.
	$(BIN)/ruff check --fix --quiet $(SOURCES)
	$(BIN)/ruff format --quiet $(SOURCES)

lint: install ## Check style and that imports go one way.
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check --quiet $(SOURCES)
	$(BIN)/lint-imports

types: install ## Check types, strictly.
	$(BIN)/mypy

test: lint types ## Everything that needs no cluster but the control plane's programs (fetched or built on first use).
	$(BIN)/pytest

verify: install ## Regenerate what is generated; fails if that changes anything.
	$(BIN)/pytest -q tests --regenerate -k golden
	git diff --exit-code -- tests crds charts deploy

controlplane: install ## Get the Kubernetes control plane's programs, and say where they are.
	$(BIN)/python -m gpupack.node.binaries

e2e: install ## The journeys, on a real control plane with the virtual GPU node.
	$(BIN)/pytest e2e

demo: install ## See it work: a ModelServing packed onto a GPU until its memory bandwidth saturates.
	$(BIN)/gpupack demo

lock: ## Resolve the pinned requirements anew from pyproject.toml.
	$(BIN)/uv pip compile --quiet --universal --no-header --no-emit-index-url --generate-hashes --group dev pyproject.toml -o requirements/dev.txt

clean: ## Remove the environment and what tools leave behind.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache e2e/.out
