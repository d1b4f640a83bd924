#!/usr/bin/env bash
# Every check of the repository: the one command for a working copy and for continuous integration.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

usage() {
  cat <<'EOF'
Usage: bash launch/test.sh [PYTEST ARGUMENT]...

Installs asympo_jax with its test extra, then checks format, lint, types and tests, all of them even
if one fails. Arguments go to pytest, such as -k floors or tests/test_floors.py.

  PYTHON        (environment variable) the Python 3.11 or newer to make the environment with
  ASYMPO_VENV   (environment variable) folder of the environment; default: .venv in the repository
EOF
}

case ${1:-} in
  -h | --help)
    usage
    exit 0
    ;;
esac

prepare_environment test
cd "$ROOT"

failed=""
stage() { # NAME COMMAND...
  local name=$1 start_s=$SECONDS
  shift
  say "== $name"
  if "$@"; then
    say "== $name: passed in $((SECONDS - start_s)) s"
  else
    say "== $name: FAILED with exit status $? after $((SECONDS - start_s)) s"
    failed="$failed${failed:+, }$name"
  fi
}

stage format "$VENV_PYTHON" -m ruff format --check
stage lint "$VENV_PYTHON" -m ruff check
stage types "$VENV_PYTHON" -m pyright --pythonpath "$VENV_PYTHON"
stage tests "$VENV_PYTHON" -m pytest -n 2 --dist worksteal "$@"

[ -z "$failed" ] || fail "Failed: $failed."
say "All checks passed."
