# Every habit is one command; `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help venv engine engine-stop images lock run test lint types format bench deps clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell git ls-files 'runner/*.py' 2>/dev/null)

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

venv: $(VENV)/.made $(VENV)/.compiled ## the environment, from the lock file

$(VENV)/.made: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rolebox needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip --quiet --disable-pip-version-check install --require-hashes -r requirements.lock
	$(BIN)/pip --quiet --disable-pip-version-check install --no-deps --no-build-isolation -e .
	@touch $@

# Ahead of time, so that the first start is as quick as the second.
$(VENV)/.compiled: $(VENV)/.made $(SOURCES)
	@$(BIN)/python -m compileall -q runner
	@touch $@

engine: ## an engine: the one that answers, else one installed and started here
	@.ci/setup engine

engine-stop: ## stop the engine that `make engine` started, and no other
	@.ci/setup engine-stop

images: venv engine ## the locked images, built if the engine lacks them
	@$(BIN)/rolebox images list --json 2>/dev/null | grep -q '"complete": true' || .ci/setup tools
	@$(BIN)/rolebox images build

lock: venv engine ## build the images anew and write images/images.lock, for a commit
	@.ci/setup tools
	$(BIN)/rolebox images lock --shipped

run: images ## the demo: three roles, three sealed containers, no key
	@$(BIN)/rolebox demo

test: images ## every test, on the real engine with the real Codex CLI
	$(BIN)/pytest

lint: venv ## ruff, code and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: venv ## mypy, strict
	$(BIN)/mypy

format: venv ## let ruff format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: images ## speed and memory, beside raw docker in the same run
	@$(BIN)/python -m tests.bench

deps: ## write requirements.lock anew (needs uv)
	uv pip compile --quiet pyproject.toml --group dev --generate-hashes --universal \
		--python-version 3.11 --no-emit-index-url --no-emit-find-links --no-header \
		-o requirements.lock

clean: ## what was made here; runs and images stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find runner tests -name __pycache__ -type d -prune -exec rm -rf {} +
