# `make dev` and `make test` need Python 3.11 to 3.14 and make; everything else is set up on the way, in .venv.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help dev demo bench chaos test test-fast lint up lock replay pictures browser clean FORCE

PY := .venv/bin/python
READY := .venv/.ready

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)

dev: $(READY)  ## everything, in the foreground: Temporal, MongoDB, worker, API
	@$(PY) -m dev.stack

demo: $(READY)  ## a guided tour: orders that complete, fail, are cancelled, wait for a person
	@$(PY) -m dev.demo

bench: $(READY)  ## the measurements
	@$(PY) -m dev.bench $(ARGS)

chaos: $(READY)  ## servers are killed while orders come in; nothing is lost
	@$(PY) -m dev.chaos $(ARGS)

test: $(READY)  ## every test, in two processes; ARGS="-k cancel" or a path chooses, and runs in one
	@$(PY) -m pytest $(if $(filter -k tests/%,$(ARGS)),,$(PARALLEL)) $(ARGS)

test-fast: $(READY)  ## the tests without a browser or processes of their own
	@$(PY) -m pytest $(PARALLEL) -m "not slow" $(ARGS)

# By file: the tests of one share servers and set-up. No reordering: tests/conftest.py puts the longest files first.
PARALLEL := --numprocesses=2 --dist=loadfile --no-loadscope-reorder

lint: $(READY)  ## format, lint, types, CI workflows
	@$(PY) -m ruff format --check --quiet . || { echo "run: $(PY) -m ruff format" >&2; exit 1; }
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@.venv/bin/zizmor --offline --strict-collection --persona=pedantic --quiet .github

up:  ## the same with containers
	@docker compose up --build

lock: $(READY)  ## newest versions that pyproject.toml allows into the lock files
	@$(PY) -m pip install --quiet uv
	@$(COMPILE) --group dev --upgrade --output-file requirements-dev.lock
	@$(COMPILE) --constraints requirements-dev.lock --output-file requirements.lock

COMPILE = $(PY) -m uv pip compile pyproject.toml --quiet --universal --generate-hashes --no-annotate \
	--custom-compile-command "make lock"

replay: $(READY)  ## record the workflow histories anew that tests replay
	@$(PY) -m tests.replay.record

pictures: $(READY) browser  ## the README's pictures, taken anew from the running page
	@$(PY) -m dev.pictures

browser:  ## Chromium, for the tests of the page
	@command -v chromium >/dev/null && exit; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  echo "installing chromium"; \
	  apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends chromium >/dev/null; \
	else echo "chromium is missing. On Debian: sudo apt-get install chromium" >&2; exit 1; fi

clean:  ## forget the environment and all data of `make dev`
	@rm -rf .venv .dev .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Also where PYTHON is given, and where the Python that .venv was made with is gone.
$(READY): requirements-dev.lock $(if $(PYTHON),FORCE,$(shell $(PY) -c '' 2>/dev/null || echo FORCE))
	@dev/setup.sh "$(PYTHON)"

FORCE:
