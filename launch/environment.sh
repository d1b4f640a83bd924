# shellcheck shell=bash
# Sourced by the scripts beside it: the Python environment of the repository, made or reused.
#
# Decisions:
# - A stamp, written only after a successful install, says what is installed and from what; without
#   a valid one the install is repeated.
# - An install that was killed may leave half a package that pip takes for a whole one, so the
#   environment is then made anew. One that these scripts did not make is never deleted.
# - Only what bash 3.2 and POSIX tools offer, so that it works on macOS too.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
CALLER_DIR=$PWD
NEEDED_KIB=2097152

say() { printf '%s\n' "$*"; }

fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

absolute_path() { # PATH, relative to where the caller stands
  case $1 in /*) printf '%s\n' "$1" ;; *) printf '%s\n' "$CALLER_DIR/$1" ;; esac
}

VENV=$(absolute_path "${ASYMPO_VENV:-$ROOT/.venv}")
VENV_PYTHON=$VENV/bin/python
STATE=$VENV/.asympo # files: made-here, installing, installed-core, installed-test

python_version() { # PYTHON -> 3.11; fails if it does not run
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

is_new_enough() { # 3.11 -> true for 3.11 and newer
  local major=${1%%.*} minor=${1#*.}
  [ "$major" -gt 3 ] || { [ "$major" -eq 3 ] && [ "$minor" -ge 11 ]; }
}

python_candidates() {
  local name active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
  if [ -n "${PYTHON:-}" ]; then
    command -v "$PYTHON" || true
    return 0
  fi
  if [ -n "$active" ] && [ "$active" != "$VENV" ]; then printf '%s\n' "$active/bin/python"; fi
  for name in python3.12 python3.11 python3 python3.13; do command -v "$name" || true; done
}

find_python() { # prints a Python that can make an environment, or ends with the reason
  local candidate version old="" bare=""
  while IFS= read -r candidate; do
    version=$(python_version "$candidate") || continue
    if ! is_new_enough "$version"; then
      old=${old:-"$version at $candidate"}
    elif ! "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
      bare=${bare:-"$version at $candidate"}
    else
      printf '%s\n' "$candidate"
      return 0
    fi
  done < <(python_candidates)
  [ -z "$bare" ] || fail "Python $bare has no venv module: install it (Debian and Ubuntu:" \
    "apt install python${bare%% *}-venv) or set PYTHON to another interpreter."
  [ -z "${PYTHON:-}" ] || fail "asympo_jax needs Python 3.11 or newer: PYTHON=$PYTHON is not," \
    "found ${old:-none}."
  fail "asympo_jax needs Python 3.11 or newer: found ${old:-none} (install one, or set PYTHON to it)."
}

require_disk() {
  local folder=$VENV free_kib
  while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
  # The column before the percentage: names of devices and mounts may hold spaces.
  free_kib=$(df -Pk "$folder" 2>/dev/null |
    awk 'NR == 2 { for (i = 4; i <= NF; i++) if ($i ~ /%$/) { print $(i - 1); exit } }') || true
  [ -z "$free_kib" ] || [ "$free_kib" -ge "$NEEDED_KIB" ] ||
    fail "Installing needs about 2 GB of free disk space: $folder has $((free_kib / 1024)) MB."
}

make_environment() {
  local python version
  python=$(find_python) || exit 1
  version=$(python_version "$python")
  if [ ! -e "$STATE/made-here" ] && [ -n "$(ls -A "$VENV" 2>/dev/null)" ]; then
    fail "$VENV exists and is no working Python environment: remove it, or name another folder" \
      "in ASYMPO_VENV."
  fi
  say "Making an environment of Python $version in $VENV"
  mkdir -p "$STATE"
  # The mark of the owner goes first and stays, so that a folder left half-way is known as ours.
  : >"$STATE/made-here"
  find "$VENV/" -mindepth 1 -maxdepth 1 ! -name .asympo -exec rm -rf {} +
  rm -f "$STATE"/install*
  "$python" -m venv "$VENV" >"$VENV/install.log" 2>&1 ||
    fail "Python $version at $python could not make an environment: the log is in" \
      "$VENV/install.log."
}

fingerprint() { # EXTRA
  {
    cat "$ROOT/pyproject.toml"
    printf '%s\n' "$ROOT" "$1"
    "$VENV_PYTHON" -c 'import sys; print(sys.version)'
  } | cksum
}

is_installed() { # EXTRA
  local stamp=$STATE/installed-${1:-core}
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint "$1")" ]
}

install() { # EXTRA [PIP OPTION]...
  local extra=$1 log=$VENV/install.log reason="pip failed"
  shift
  say "Installing asympo_jax${extra:+[$extra]} and what it needs into $VENV (a few minutes)"
  mkdir -p "$STATE"
  rm -f "$STATE"/installed-*
  : >"$STATE/installing"
  if ! "$VENV_PYTHON" -m pip install --disable-pip-version-check --no-input "$@" \
    --editable "$ROOT${extra:+[$extra]}" >"$log" 2>&1; then
    # pip ended by itself and has put back what it replaced: the environment is whole.
    rm -f "$STATE/installing"
    if grep -qi 'no space left' "$log"; then
      reason="no space left on the disk"
    elif grep -qiE 'connection|name resolution|timed out|unreachable|proxy' "$log"; then
      reason="no network"
    fi
    fail "The packages could not be installed ($reason): the log is in $log."
  fi
  fingerprint "$extra" >"$STATE/installed-${extra:-core}"
  [ -z "$extra" ] || fingerprint "" >"$STATE/installed-core"
  rm -f "$STATE/installing"
}

lock_environment() { # until unlock_environment; a machine without flock goes without
  local parent
  parent=$(dirname "$VENV")
  { mkdir -p "$parent" && [ -w "$parent" ]; } 2>/dev/null ||
    fail "$parent cannot be written: name another folder for the environment in ASYMPO_VENV."
  exec 9>"$VENV.lock"
  command -v flock >/dev/null 2>&1 || return 0
  flock -n 9 || {
    say "Waiting for another install into $VENV"
    flock 9 || true
  }
}

unlock_environment() { exec 9>&-; }

prepare_environment() { # EXTRA: "" or test
  local version
  lock_environment
  if [ -e "$STATE/installing" ] && [ -e "$STATE/made-here" ] ||
    ! "$VENV_PYTHON" -m pip --version >/dev/null 2>&1; then
    require_disk
    make_environment
  fi
  version=$(python_version "$VENV_PYTHON")
  is_new_enough "$version" || fail "asympo_jax needs Python 3.11 or newer: $VENV has $version;" \
    "remove it, or name another folder in ASYMPO_VENV."
  [ -z "${PYTHON:-}" ] || [ "$(python_version "$PYTHON")" = "$version" ] ||
    fail "$VENV has Python $version and PYTHON=$PYTHON has another: remove the folder, or name" \
      "another one in ASYMPO_VENV."
  if [ -e "$STATE/installing" ]; then
    require_disk
    install "$1" --force-reinstall
  elif is_installed "$1"; then
    say "Using the environment in $VENV"
  else
    require_disk
    install "$1"
  fi
  unlock_environment
}
