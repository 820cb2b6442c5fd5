#!/usr/bin/env bash
# Install what `make peers` needs, apart from everything else: .venv-peers, and Restate's server in dev/peers.
#
# PostgreSQL comes from the system. Each error message says what to do.
set -eu -o pipefail
cd "$(dirname "$0")/../.."

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 1
}

PATH="$(printf '%s:' /usr/lib/postgresql/*/bin)$PATH" command -v initdb >/dev/null ||
  fail "PostgreSQL not found: install it (on Debian: apt-get install postgresql)"
command -v npm >/dev/null || fail "npm not found: install it (on Debian: apt-get install npm)"

echo "setting up .venv-peers"
.venv/bin/python -m venv --clear .venv-peers
.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-input --require-hashes \
  -r requirements-peers.lock || fail "pip cannot install requirements-peers.lock"
# Without scripts: the server needs none, and a package of it would report its installation.
(cd dev/peers && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) ||
  fail "npm cannot install the packages of dev/peers/package.json"
touch .venv-peers/.ready
