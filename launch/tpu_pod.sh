#!/usr/bin/env bash
# One run on all hosts of a Cloud TPU, also one that is pre-empted.
#
# Decisions:
# - Every step may be repeated: create finds the TPU, install keeps the environment, a run at work
#   is found, a run that ended carries on. So whatever breaks, `run` goes round again, with a bound.
# - The run is apart from the connection: closing this terminal does not end it.
# - The committed state of the repository is what the hosts get.
# - Nothing secret is sent or stored, and nothing is deleted but by `delete`, and a TPU that was
#   pre-empted, which only a new one of its name can replace.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=commands.sh
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"

usage() {
  cat <<'END'
Usage: bash launch/tpu_pod.sh ACTION --name=NAME --zone=ZONE [FLAG]... [-- --workdir=DIR [TRAIN FLAG]...]

  run       create, install, train on all hosts, wait; carries on after a pre-emption. The same
            command again finds what is there. Ends with the exit code of train (docs/faults.md)
  create    the TPU, if it is not there; it costs money until it is deleted
  install   the repository's last commit and its environment on all hosts
  logs      what the run says, on --worker
  stop      asks the run to save and to end; run carries on
  delete    the TPU

  --name=NAME --zone=ZONE  of the TPU; --project=PROJECT if it is not gcloud's own
  --type=TYPE         accelerator type, such as v5litepod-16, v5p-8, v6e-8 (run, create)
  --version=VERSION   of the TPU's software; default: that of the type
  --spot              a TPU that is cheaper and may be pre-empted
  --setup=COMMAND     runs on all hosts before the install: Python 3.11, the shared file system
  --extra=NAME,...    extras of pyproject.toml to install; default: tpu
  --max_restarts=N    how often run starts again; default: 20
  --retry_s=S         seconds before run asks for a TPU or its hosts again; default: 300
  --worker=N          the host of logs; default: 0
  --dry_run           prints the commands, and runs none

Example: bash launch/tpu_pod.sh run --name=math --zone=us-west4-a --type=v5litepod-16 --spot \
  --setup='bash /path/on/hosts/setup.sh' -- FLAGS_OF_TRAIN
docs/launching.md has the flags of train for a real model.
END
}

name="" zone="" project="" type="" version="" spot="" setup="" extra=tpu
max_restarts=20 retry_s=300 worker=0
STATE="" HOSTS="" CODE=""
SOURCE=asympo_run/source # in the home directory of a host

take_action "run create install logs stop delete" "$@"
shift
parse_flags "name zone project type version setup extra max_restarts retry_s worker" \
  "spot dry_run" "$@"

require_flags() {
  case $name in "" | [!a-z]* | *[!a-z0-9-]*)
    refuse "--name=$name: must be a small letter, then small letters, digits and hyphens." ;;
  esac
  case $zone in "" | *[!a-z0-9-]*) refuse "--zone=$zone: must be a zone, such as us-west4-a." ;; esac
  require_number max_restarts "$max_restarts"
  require_number retry_s "$retry_s"
  require_number worker "$worker"
  require_extra "$extra"
  case $action in run | create) ;; *) return 0 ;; esac
  case $type in
    v5litepod-*) version=${version:-v2-alpha-tpuv5-lite} ;;
    v5p-*) version=${version:-v2-alpha-tpuv5} ;;
    v6e-*) version=${version:-v2-alpha-tpuv6e} ;;
    "") refuse "--type is missing: name an accelerator type, such as --type=v5litepod-16." ;;
  esac
  [ -n "$version" ] || refuse "--type=$type: its software is not known here, name it with --version."
  [ "$action" = create ] || require_workdir absolute
}

tpu() { # VERB ARGUMENT...
  local verb=$1
  shift
  perform gcloud compute tpus tpu-vm "$verb" "$@" --zone="$zone" ${project:+"--project=$project"}
}

on_hosts() { # COMMAND
  tpu ssh "$name" --worker=all --command="$1"
}

look() { # sets STATE, and the number of HOSTS
  local answer errors=$ROOT/build/$name.gcloud
  if [ -n "$dry_run" ]; then
    tpu describe "$name" --format='value(state,networkEndpoints.len())'
    STATE=NONE
    return 0
  fi
  mkdir -p "$ROOT/build"
  if answer=$(tpu describe "$name" --format='value(state,networkEndpoints.len())' 2>"$errors"); then
    read -r STATE HOSTS <<<"$answer"
    [ "$STATE" != READY ] || [ -n "$HOSTS" ] || fail "gcloud does not say how many hosts $name has."
  elif grep -q NOT_FOUND "$errors"; then
    STATE=NONE
  else
    cat "$errors" >&2
    STATE=UNKNOWN
  fi
  rm -f "$errors"
}

create() {
  look
  case $STATE in
    READY)
      say "$name is there, with $HOSTS host(s)."
      return 0
      ;;
    STOPPED) tpu start "$name" || return 1 ;;
    NONE | PREEMPTED | TERMINATED)
      [ "$STATE" = NONE ] || tpu delete "$name" --quiet || return 1
      tpu create "$name" --accelerator-type="$type" --version="$version" ${spot:+--spot} || return 1
      ;;
    *)
      say "$name is $STATE."
      return 1
      ;;
  esac
  [ -n "$dry_run" ] || look
}

install_on_hosts() {
  local archive=$ROOT/build/$name.tgz
  if [ -z "$dry_run" ]; then
    mkdir -p "$ROOT/build"
    [ -z "$(git -C "$ROOT" status --porcelain)" ] ||
      say "What is not committed does not go to the hosts."
  fi
  perform git -C "$ROOT" archive --format=tar.gz --output="$archive" HEAD || return
  tpu scp "$archive" "$name:asympo_run.tgz" --worker=all || return 255
  [ -z "$setup" ] || on_hosts "$setup" || return
  # Under the lock of the run: one that is at work keeps its files, and nothing is installed.
  on_hosts "mkdir -p asympo_run && flock -n -E 0 asympo_run/lock bash -euc '\
rm -rf $SOURCE; mkdir $SOURCE; tar -xzf asympo_run.tgz -C $SOURCE; \
ASYMPO_VENV=asympo_run/venv bash $SOURCE/launch/local.sh --install_only --extra=$extra'"
}

start_on_hosts() {
  local words=("${TRAIN[@]}")
  [ "$HOSTS" = 1 ] || words+=("$DISTRIBUTED_FLAG")
  on_hosts "ASYMPO_VENV=asympo_run/venv bash $SOURCE/launch/tpu_host.sh start $(show "${words[@]}")"
}

wait_for_hosts() { # sets CODE, empty if the connection or the TPU was lost
  local command="bash $SOURCE/launch/tpu_host.sh wait" codes wanted
  CODE=""
  if [ -n "$dry_run" ]; then
    on_hosts "$command"
    return 0
  fi
  say "The run is at work; to end this command does not end it. Its words: bash launch/tpu_pod.sh logs --name=$name --zone=$zone"
  codes=$(on_hosts "$command" | sed -n 's/.*asympo_jax ended with //p') || true
  [ "$(grep -c . <<<"$codes")" -eq "$HOSTS" ] || return 0
  # What would happen again goes first, then what is to be started again, then what is to be seen to.
  for wanted in 2 3 stopped 143 137 75; do
    if grep -qx "$wanted" <<<"$codes"; then
      CODE=$wanted
      return 0
    fi
  done
  CODE=$(sort -n <<<"$codes" | tail -n 1)
}

again() { # REASON [wait]
  count_restart "$1"
  [ $# -eq 1 ] || sleep "$retry_s"
}

run() {
  local restarts=0 created="" status
  while :; do
    if ! create; then
      [ -n "$created" ] || fail "$name could not be created, see above."
      again "$name could not be created" wait
      continue
    fi
    created=yes
    status=0
    { install_on_hosts && start_on_hosts; } || status=$?
    if [ $status -ne 0 ]; then
      look
      # 255 is ssh's own: a host that is away, such as one that starts anew.
      [ "$STATE" != READY ] || [ $status -eq 255 ] ||
        fail "The run could not be started on all hosts, see above."
      again "$name was lost" wait
      continue
    fi
    wait_for_hosts
    [ -z "$dry_run" ] || return 0
    case $CODE in
      "") again "The connection to $name was lost" ;;
      stopped)
        say "The run was stopped; the same command carries on."
        exit 75
        ;;
      0)
        say "The run is complete. $name still costs money: bash launch/tpu_pod.sh delete --name=$name --zone=$zone"
        return 0
        ;;
      *)
        starts_again "$CODE" || exit "$CODE"
        again "The run ended with $CODE"
        ;;
    esac
  done
}

delete() {
  look
  if [ "$STATE" = NONE ] && [ -z "$dry_run" ]; then
    say "There is no $name in $zone."
  else
    tpu delete "$name" --quiet
  fi
}

require_flags
case $action in
  create) create || fail "$name could not be created, see above." ;;
  install) install_on_hosts ;;
  logs) tpu ssh "$name" --worker="$worker" --command="tail -n 200 -F asympo_run/log" ;;
  stop) on_hosts "bash $SOURCE/launch/tpu_host.sh stop" ;;
  *) "$action" ;;
esac
