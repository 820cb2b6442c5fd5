# `make dev` and `make test` need Python 3.11 to 3.14 and make; the rest is installed into .venv.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help dev up demo token bench peers chaos chaos-short test test-fast test-tooling test-exhaustive lint
.PHONY: test-tools rename delete apply lock replay pictures clean FORCE

# Without bytecode, Temporal's sandbox would compile the workflow's module again for each order.
unexport PYTHONDONTWRITEBYTECODE

PY := .venv/bin/python
READY := .venv/.ready
PEERS := .venv-peers/.ready

help:  ## list the commands
	@awk -F ':.*## ' '/^##@/ { printf "\n%s\n", substr($$0, 5) } /^##-/ { print "  " substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Run

dev: $(READY)  ## run Temporal, MongoDB, worker and API in the foreground
	@$(PY) -m dev.stack

up:  ## run the same stack in containers
	@docker compose up --build

demo: $(READY)  ## a guided tour: orders complete, fail, await approval, and outlive their worker
	@$(PY) -m dev.demo

token: $(READY)  ## print an access token for the API of `API_OPEN=false make dev`; ARGS="--scopes orders:read"
	@$(PY) -m dev.issuer $(ARGS)

##@ Measure

bench: $(READY)  ## measure what orders cost, against a floor, in half an hour; ARGS="--rows floor,cpu", --quick, --proof
	@$(PY) -m dev.bench $(ARGS)

peers: $(READY) $(PEERS)  ## the same saga on DBOS and on Restate under the same load, 5 minutes; ARGS=--quick, --write-docs
	@$(PY) -m dev.peers.run $(ARGS)

chaos: $(READY)  ## every kind of fault while orders come in, then G1 to G7 in figures; ARGS="--seed 7"
	@$(PY) -m dev.chaos $(ARGS)

chaos-short: $(READY)  ## the same in about a minute, without the faults that delay an order for long
	@$(PY) -m dev.chaos --short $(ARGS)

##@ Test

test: $(READY)  ## all tests of the program; ARGS="-k cancel" or ARGS=path runs some, in one process
	@$(PY) -m pytest $(if $(filter -k tests/%,$(ARGS)),,$(PARALLEL) $(patsubst %,--ignore=tests/%,$(TOOLING))) $(ARGS)

test-fast: $(READY)  ## the tests that need no browser and start no processes of their own
	@$(PY) -m pytest --numprocesses=3 $(BY_FILE) -m "not slow" $(patsubst %,--ignore=tests/%,browser e2e $(TOOLING)) $(ARGS)

test-tooling: $(READY)  ## the tests of dev/, deploy/ and examples/, and of what the docs tell you to change
	@$(PY) -m pytest $(PARALLEL) $(ARGS) $(patsubst %,tests/%,$(TOOLING))

test-exhaustive: $(READY)  ## all of these, with every combination in those that otherwise test every pair
	@$(PY) -m pytest $(PARALLEL) --exhaustive -o faulthandler_timeout=1800 $(ARGS)

# By file, because the tests of a file share servers and set-up. tests/conftest.py puts the longest files first.
BY_FILE := --dist=loadfile --no-loadscope-reorder
TOOLING := tooling examples
PARALLEL := --numprocesses=6 $(BY_FILE)

lint: $(READY)  ## check format, lint rules, types and CI workflows
	@$(PY) -m ruff format --check --quiet . || { echo "run: $(PY) -m ruff format" >&2; exit 1; }
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@.venv/bin/zizmor --offline --strict-collection --persona=pedantic --quiet .github

test-tools:  ## install what tests use: Chromium, nginx, kubectl, Prometheus, Docker Compose, npm
	@missing=; \
	command -v chromium-headless-shell chromium >/dev/null || missing="chromium"; \
	PATH="$$PATH:/usr/sbin" command -v nginx >/dev/null || missing="$$missing nginx-light"; \
	command -v npm >/dev/null || missing="$$missing npm"; \
	command -v kubectl >/dev/null || missing="$$missing kubernetes-client"; \
	command -v prometheus >/dev/null || missing="$$missing prometheus"; \
	docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || missing="$$missing docker-compose"; \
	if [ -z "$$missing" ]; then exit; fi; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  echo "installing $$missing"; \
	  export DEBIAN_FRONTEND=noninteractive; apt-get -qq update; \
	  smaller="$${missing/chromium/chromium-headless-shell}"; \
	  apt-get -qq install --no-install-recommends $$smaller >/dev/null || \
	  apt-get -qq install --no-install-recommends $$missing >/dev/null; \
	else echo "missing: $$missing. On Debian: sudo apt-get install $$missing" >&2; exit 1; fi
	@cd tests/clients && [ node_modules/.package-lock.json -nt package-lock.json ] || \
	  npm ci --ignore-scripts --no-audit --no-fund --loglevel=error || \
	  echo "the tests of TypeScript clients will be skipped: npm cannot install its packages" >&2

##@ Maintain

rename: $(READY)  ## name the project after yours, before its first order: make rename NAME=acme-fulfilment
	@$(PY) -m dev.rename "$(NAME)" $(ARGS)

delete: $(READY)  ## delete what you do not need, a row of docs/make-it-yours.md: make delete EXTRA="order desk"
	@$(PY) -m dev.delete "$(EXTRA)"

apply: $(READY)  ## make the changes of a section of the docs: make apply RECIPE="Another step"
	@$(PY) -m dev.apply "$(RECIPE)"

lock: $(READY)  ## write the lock files after a change of pyproject.toml; ARGS=--upgrade takes the newest versions
	@$(PY) -m pip install --quiet uv
	@$(COMPILE) --group dev $(ARGS) --output-file requirements-dev.lock
	@$(COMPILE) --constraints requirements-dev.lock --output-file requirements.lock
	@$(UV) --group peers --constraints requirements-dev.lock $(ARGS) --output-file requirements-peers.lock

UV = $(PY) -m uv pip compile --quiet --universal --generate-hashes --no-annotate --custom-compile-command "make lock"
COMPILE = $(UV) pyproject.toml --all-extras

replay: $(READY)  ## record the workflow histories that the tests replay
	@$(PY) -m tests.replay.record

pictures: $(READY) test-tools  ## take the pictures of the README from the running page
	@$(PY) -m dev.pictures

clean:  ## delete .venv, all caches and all data of `make dev`
	@rm -rf .venv .venv-peers dev/peers/node_modules .dev .mypy_cache .pytest_cache .ruff_cache .hypothesis tests/clients/node_modules

##@ Ports: set the variable to use another, as in API_PORT=8100 make dev
##- API_PORT 8000, TEMPORAL_PORT 7233, TEMPORAL_UI_PORT 8233, MONGODB_PORT 27017, DEV_CONTROL_PORT 8009, ISSUER_PORT 8400
##- The data of make dev is in .dev; DEV_DIR names another folder.

# Also runs if PYTHON is given, or if the Python behind .venv no longer exists.
$(READY): requirements-dev.lock $(if $(PYTHON),FORCE,$(shell $(PY) -c '' 2>/dev/null || echo FORCE))
	@dev/setup.sh "$(PYTHON)"

$(PEERS): $(READY) requirements-peers.lock dev/peers/package-lock.json
	@dev/peers/setup.sh

FORCE:
