# gpupack: `make` lists what there is.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := operator charts tests e2e
LOCK := $(BIN)/uv pip compile --quiet --universal --no-header --no-annotate --no-emit-index-url --generate-hashes

.PHONY: help install fmt lint types test verify docs soak mutation e2e e2e-vllm e2e-kill demo controlplane lock clean

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
	$(BIN)/pytest --numprocesses=auto --dist=loadfile

verify: install ## Regenerate what is generated; fails if that changes anything.
	$(BIN)/pytest -q tests --regenerate -m written
	git diff --exit-code -- tests crds charts deploy docs

docs: install ## Build the documentation's site into build/docs; a warning is an error.
	$(BIN)/zensical build --strict --clean

controlplane: install ## Get the Kubernetes control plane's programs, and say where they are.
	$(BIN)/python -m gpupack.node.binaries

e2e: install ## The journeys, on real control planes with virtual GPU nodes, two at a time: they mostly wait.
	$(BIN)/pytest e2e --numprocesses=2 --dist=loadfile --no-loadscope-reorder

e2e-vllm: install ## The real vLLM (its CPU build, 6 GB in an environment of its own) as an engine pod; what we know of it.
	$(BIN)/pytest e2e/vllm/real_engine.py

e2e-kill: install ## The operator dies at every distinct API call; storms of faults; silence (a quarter of an hour).
	$(BIN)/pytest e2e/kill_everywhere.py -s

SEEDS ?= 1000
STEPPED ?= 0
soak: install ## Simulated clusters with faults: SEEDS=10000 fresh histories, and every seed that ever broke a rule.
	$(BIN)/gpupack soak --seeds $(SEEDS) --stepped $(STEPPED) --known tests/soak/seeds.txt \
	  $(if $(FIRST),--first $(FIRST)) $(if $(JOBS),--jobs $(JOBS))

mutation: install ## Change the decision's code one expression at a time and list what no test notices: MODULES='hold steps'.
	$(BIN)/python -m tests.mutants.survivors $(MODULES)

demo: install ## See it work: a ModelServing packed onto a GPU until its memory bandwidth saturates.
	$(BIN)/gpupack demo

lock: ## Resolve the pinned requirements anew from pyproject.toml: to develop, to run (the image), to build a wheel.
	$(LOCK) --group dev pyproject.toml -o requirements/dev.txt
	$(LOCK) -c requirements/dev.txt pyproject.toml -o requirements/run.txt
	echo hatchling | $(LOCK) -c requirements/dev.txt - -o requirements/build.txt

clean: ## Remove the environment and what tools leave behind.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache e2e/.out .soak
