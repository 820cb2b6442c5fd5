# `make dev` and `make test` need Python 3.11 to 3.14 and make; the rest is installed into .venv.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help dev token demo bench chaos test test-fast lint up lock replay pictures test-tools clean FORCE

# Without bytecode, Temporal's sandbox would compile the workflow's module again for each order.
unexport PYTHONDONTWRITEBYTECODE

PY := .venv/bin/python
READY := .venv/.ready

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)

dev: $(READY)  ## run Temporal, MongoDB, worker and API in the foreground
	@$(PY) -m dev.stack

token: $(READY)  ## print an access token for the API of `API_OPEN=false make dev`; ARGS="--scopes orders:read"
	@$(PY) -m dev.issuer $(ARGS)

demo: $(READY)  ## a guided tour: orders that complete, fail, are cancelled or await approval
	@$(PY) -m dev.demo

bench: $(READY)  ## measure latency, throughput and contention on one product
	@$(PY) -m dev.bench $(ARGS)

chaos: $(READY)  ## kill servers while orders come in, then check that nothing is lost
	@$(PY) -m dev.chaos $(ARGS)

test: $(READY)  ## all tests, in six processes; ARGS="-k cancel" or ARGS=path runs some, in one process
	@$(PY) -m pytest $(if $(filter -k tests/%,$(ARGS)),,$(PARALLEL)) $(ARGS)

test-fast: $(READY)  ## the tests that need no browser and start no processes of their own
	@$(PY) -m pytest $(PARALLEL) -m "not slow" $(ARGS)

.PHONY: test-exhaustive
test-exhaustive: $(READY)  ## all tests, with every combination in those that otherwise test every pair
	@$(PY) -m pytest $(PARALLEL) --exhaustive $(ARGS)

# By file, because the tests of a file share servers and set-up. tests/conftest.py puts the longest files first.
PARALLEL := --numprocesses=6 --dist=loadfile --no-loadscope-reorder

lint: $(READY)  ## check format, lint rules, types and CI workflows
	@$(PY) -m ruff format --check --quiet . || { echo "run: $(PY) -m ruff format" >&2; exit 1; }
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@.venv/bin/zizmor --offline --strict-collection --persona=pedantic --quiet .github

up:  ## run the same stack in containers
	@docker compose up --build

lock: $(READY)  ## update the lock files to the newest versions that pyproject.toml allows
	@$(PY) -m pip install --quiet uv
	@$(COMPILE) --group dev --upgrade --output-file requirements-dev.lock
	@$(COMPILE) --constraints requirements-dev.lock --output-file requirements.lock

COMPILE = $(PY) -m uv pip compile pyproject.toml --quiet --universal --generate-hashes --no-annotate \
	--custom-compile-command "make lock"

replay: $(READY)  ## record the workflow histories that the tests replay
	@$(PY) -m tests.replay.record

pictures: $(READY) test-tools  ## take the pictures of the README from the running page
	@$(PY) -m dev.pictures

test-tools:  ## install the tests' browser and proxy: Chromium and nginx
	@missing=; \
	command -v chromium-headless-shell chromium >/dev/null || missing="chromium"; \
	PATH="$$PATH:/usr/sbin" command -v nginx >/dev/null || missing="$$missing nginx-light"; \
	if [ -z "$$missing" ]; then exit; fi; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  echo "installing $$missing"; \
	  export DEBIAN_FRONTEND=noninteractive; apt-get -qq update; \
	  smaller="$${missing/chromium/chromium-headless-shell}"; \
	  apt-get -qq install --no-install-recommends $$smaller >/dev/null || \
	  apt-get -qq install --no-install-recommends $$missing >/dev/null; \
	else echo "missing: $$missing. On Debian: sudo apt-get install $$missing" >&2; exit 1; fi

clean:  ## delete .venv, all caches and all data of `make dev`
	@rm -rf .venv .dev .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Also runs if PYTHON is given, or if the Python behind .venv no longer exists.
$(READY): requirements-dev.lock $(if $(PYTHON),FORCE,$(shell $(PY) -c '' 2>/dev/null || echo FORCE))
	@dev/setup.sh "$(PYTHON)"

FORCE:
