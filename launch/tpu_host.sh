#!/usr/bin/env bash
# On each host of a TPU: starts a run apart from the connection, waits for it, asks it to end.
#
# Decisions:
# - Whoever supervises the run holds a lock until the run has ended: to start twice does nothing,
#   and to wait is to wait for the lock, so nothing is polled and no process id is trusted.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=commands.sh
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"

usage() {
  cat <<'END'
Usage: bash launch/tpu_host.sh start --workdir=DIR [TRAIN FLAG]... | wait | stop

launch/tpu_pod.sh calls it on all hosts. The log is asympo_run/log in the home directory.
END
}

run=$HOME/asympo_run
mkdir -p "$run"

device() { df -P "$1" | awk 'NR == 2 { print $1 }'; }

start() { # TRAIN FLAG...
  local word workdir=""
  for word in "$@"; do case $word in --workdir=*) workdir=${word#*=} ;; esac done
  mkdir -p "$workdir"
  [ "$(device "$workdir")" != "$(device "$HOME")" ] ||
    refuse "--workdir=$workdir: lies on the host's own disk, which is lost with the TPU: mount a" \
      "file system that all hosts see, in --setup."
  exec 9>>"$run/lock"
  flock -w 5 9 || {
    say "The run is at work."
    return 0
  }
  rm -f "$run/exit" "$run/pid" "$run/stopped"
  # It answers once the run can be stopped, and goes on without this shell and its connection.
  read -r word < <(setsid bash "${BASH_SOURCE[0]}" supervise "$@" </dev/null 2>/dev/null) ||
    fail "The run could not be started."
  say "$word."
}

supervise() { # TRAIN FLAG...; inherits the lock
  local code=0
  cd "$ROOT"
  "$VENV_PYTHON" -m asympo_jax.train "$@" >>"$run/log" 2>&1 &
  printf '%s\n' "$!" >"$run/pid"
  say "Started"
  wait "$!" || code=$?
  printf '%s\n' "$code" >"$run/exit"
}

await() { # says how the run ended: its exit code, 137 if nothing is known of it
  local code
  flock -s "$run/lock" true
  code=$(cat "$run/exit" 2>/dev/null || echo 137)
  if [ -e "$run/stopped" ]; then code=stopped; fi
  say "asympo_jax ended with $code"
}

stop() {
  if flock -n "$run/lock" true; then
    say "No run is at work."
  else
    : >"$run/stopped"
    kill -TERM "$(cat "$run/pid")"
    say "The run was asked to save and to end."
  fi
}

case ${1:-} in
  start | supervise | stop) "$@" ;;
  wait) await ;;
  -h | --help) usage ;;
  *) refuse "${1:-}: must be start, wait or stop." ;;
esac
