#!/usr/bin/env bash
# Set up .venv with the packages of requirements-dev.lock. `make` runs this if .venv is missing or out of date.
#
#     dev/setup.sh [PYTHON]
#
# Each error message says what to do.
set -eu -o pipefail
cd "$(dirname "$0")/.."
lock=requirements-dev.lock

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 1
}

# Print the version of a Python, and `usable` or the reason why it is not. This runs the Python, because a name on PATH
# may be a broken shim, or Debian's python3, which lacks venv.
check_python() {
  "$1" - 2>/dev/null <<'PYTHON'
import sys
version = sys.version_info[:2]
if version < (3, 11):
    verdict = "(too old)"
elif version > (3, 14):
    verdict = "(too new: PyYAML has no wheel for it yet)"
else:
    verdict = "usable"
    try:
        import ensurepip, venv
    except ImportError:
        verdict = "(without venv: on Debian, apt-get install python3-venv)"
print("%d.%d %s" % (version + (verdict,)))
PYTHON
}

# Print the installation behind a Python. A .venv and the Python that created it give the same answer.
installation() { "$1" -c 'import sys; print(sys.version, sys.base_prefix)' 2>/dev/null; }

own=.venv/bin/python
"$own" -c 'import pip' 2>/dev/null || own="" # missing, or incomplete
remedy="  Python 3.11, 3.12, 3.13 and 3.14 work. Install one (on Debian: apt-get install python3 python3-venv),
  or choose one: make PYTHON=/path/to/python"

if [ -n "${1:-}" ]; then
  python=$1
  found=$(check_python "$python") || fail "PYTHON=$python does not run"$'\n'"$remedy"
  [[ $found == *usable ]] || fail "PYTHON=$python is Python $found"$'\n'"$remedy"
  if [ -n "$own" ] && [ "$(installation "$python")" = "$(installation "$own")" ]; then python=$own; fi
else
  python="" seen=""
  for candidate in $own python3 python3.14 python3.13 python3.12 python3.11 python; do
    found=$(check_python "$candidate") || continue
    [[ $found == *usable ]] && python=$candidate && break
    seen+="; $candidate is $found"
  done
  [ -n "$python" ] || fail "no usable Python found${seen/#;/:}"$'\n'"$remedy"
fi
[ "$python" = "$own" ] && [ .venv/.ready -nt "$lock" ] && exit

# Print each package as pip reaches it, and pass pip's output through.
progress() {
  awk -v all="$(grep -c '==' "$lock")" '
    /^Ignoring/ { all-- } # for another system
    /^(Collecting|Processing)/ { sub(".*/", "", $2); printf "  %d/%d %s\n", ++n, all, $2 > "/dev/stderr" }
    /^Installing/ { print "  installing" > "/dev/stderr" }
    { print; fflush() }'
}

fail_with_remedy() {
  case $1 in
    *"No space left"*)
      fail "the disk is full: $PWD/.venv needs 1 GB, part of it temporarily in ${TMPDIR:-/tmp}" ;;
    *CERTIFICATE_VERIFY_FAILED*)
      fail "the certificate of the Python package index is not trusted: set PIP_CERT to the file with your proxy's certificate" ;;
    *NewConnectionError* | *ConnectTimeout* | *ReadTimeout* | *ProxyError* | *NameResolutionError* | *"name resolution"*)
      fail "cannot reach the Python package index: check the network and pip's settings (pip config list), then try again" ;;
    *"No matching distribution"*)
      fail "$(grep -o 'No matching distribution.*' <<<"$1" | head -1): no wheel for $(uname -sm)? \
Supported are Linux with glibc and macOS, on x86_64 and arm64" ;;
    *) fail "set-up failed: $(grep -i error <<<"$1" | tail -1 || tail -1 <<<"$1")" ;;
  esac
}

echo "setting up .venv with $("$python" --version); this takes about a minute"
if [ "$python" != "$own" ]; then
  output=$("$python" -m venv --clear .venv 2>&1) || fail_with_remedy "$output"
fi
pip=(.venv/bin/python -m pip --disable-pip-version-check --no-input)
output=$("${pip[@]}" install --progress-bar off --require-hashes -r "$lock" 2>&1 | progress) || fail_with_remedy "$output"
touch .venv/.ready
