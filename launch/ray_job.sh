#!/usr/bin/env bash
# One run on a Ray cluster that stands, as a job of Ray's.
#
# Decisions:
# - A cluster without tokens, or a dashboard that is reached otherwise than through this machine's
#   loopback, is refused: whoever reaches it runs what they like.
# - The job has the name of the run, so the same command finds it at work, or starts it again.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=commands.sh
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"

usage() {
  cat <<'END'
Usage: bash launch/ray_job.sh ACTION --name=NAME [FLAG]... [-- --config=FILE --workdir=DIR [TRAIN FLAG]...]

  run     sends the run with this repository's files, follows its words, starts it again as
          docs/faults.md says; the same command finds a run at work, or carries on
  logs    follows the words of the run
  stop    asks the run to save and to end; run carries on

  --name=NAME         of the job, one for each directory of a run
  --address=URL       of the dashboard; default: http://127.0.0.1:8265
  --max_restarts=N    how often run starts again; default: 20
  --dry_run           prints the commands, and runs none

  RAY_AUTH_MODE=token (environment variable) must be set, on the cluster, too; the token is found by
                      Ray: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token

Example: bash launch/ray_job.sh run --name=first -- --config=configs/arithmetic.py --workdir=/runs/first
END
}

name="" address=http://127.0.0.1:8265 max_restarts=20
STATUS="" CODE=""
# SIGTERM's time until SIGKILL, above checkpoint.grace_s (25 by default) plus 9; Ray's own is 3 s.
RUNTIME_ENV='{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}, "excludes": [".git"]}'

take_action "run logs stop" "$@"
shift
parse_flags "name address max_restarts" "dry_run" "$@"

require_flags() {
  case $name in "" | [!A-Za-z0-9]* | *[!A-Za-z0-9_-]*)
    refuse "--name=$name: must be letters, digits, hyphens and underscores." ;;
  esac
  case ${address#http://127.0.0.1:} in
    "" | *[!0-9]*)
      refuse "--address=$address: must be http://127.0.0.1:PORT, on the head or through a tunnel." ;;
  esac
  require_number max_restarts "$max_restarts"
  [ "$action" != run ] || require_workdir absolute
  [ -z "$dry_run" ] || return 0
  [ "${RAY_AUTH_MODE:-}" = token ] ||
    refuse "RAY_AUTH_MODE=${RAY_AUTH_MODE:-}: must be token, here and on the cluster."
  [ -n "${RAY_AUTH_TOKEN:-}" ] || [ -r "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" ] ||
    refuse "There is no token: set RAY_AUTH_TOKEN_PATH to the file that has the cluster's."
}

job() { # VERB ARGUMENT...
  local verb=$1
  shift
  perform ray job "$verb" --address="$address" "$@"
}

look() { # sets STATUS, and CODE once the run has ended
  local answer
  STATUS=UNKNOWN CODE=""
  answer=$(job status "$name" 2>&1) || true
  case $answer in
    *"Job '$name' failed"*) # first, as it is followed by what the run said last
      STATUS=ENDED
      CODE=$(sed -n 's/.*failed with exit code \(-\{0,1\}[0-9]*\).*/\1/p' <<<"$answer" | head -n 1)
      CODE=${CODE:-137} # its supervisor died, and with it the run
      [ "$CODE" -ge 0 ] || CODE=$((128 - CODE))
      ;;
    *"Job '$name' succeeded"*) STATUS=ENDED CODE=0 ;;
    *"Job '$name' was stopped"*) STATUS=ENDED CODE=stopped ;;
    *"Status for job '$name': "*) STATUS=RUNNING ;;
    *"Job $name does not exist"*) STATUS=NONE ;;
    *) fail "The dashboard at $address does not answer as it should: ${answer##*$'\n'}" ;;
  esac
}

submit() {
  [ "$STATUS" != ENDED ] || job delete "$name"
  job submit --submission-id="$name" --no-wait --working-dir="$ROOT" \
    --runtime-env-json="$RUNTIME_ENV" -- \
    python -m asympo_jax.train "${TRAIN[@]}" --config.runtime.name=ray
}

run() {
  local restarts=0
  if [ -n "$dry_run" ]; then
    job status "$name"
    submit
    job logs "$name" --follow
    return 0
  fi
  look
  while :; do
    [ "$STATUS" = RUNNING ] || submit
    STATUS=RUNNING
    while [ "$STATUS" = RUNNING ]; do
      job logs "$name" --follow || true
      look
    done
    case $CODE in
      0) return 0 ;;
      stopped)
        say "The run was stopped; the same command carries on."
        exit 75
        ;;
    esac
    starts_again "$CODE" || exit "$CODE"
    count_restart "The run ended with $CODE"
  done
}

require_flags
case $action in
  run) run ;;
  logs) job logs "$name" --follow ;;
  stop) job stop "$name" ;;
esac
