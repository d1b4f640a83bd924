#!/usr/bin/env bash
# The phenomenon on a laptop: the same stale samplers, trained with ASymPO and with REINFORCE.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

usage() {
  cat <<'EOF'
Usage: bash launch/quickstart.sh [WORKDIR] [TRAIN OPTION]...

Installs asympo_jax into an environment of its own, trains on the arithmetic task with ASymPO and
with REINFORCE, both on samples that are 16 updates old, and draws both into
WORKDIR/report/curves.png. The same command again goes on where it was stopped.

  WORKDIR       where runs and report go; default: runs/quickstart in the repository. The warm-up of
                both is kept in runs/warmup there, for your own runs, too
  TRAIN OPTION  goes to both runs, such as --config.num_updates=20

  PYTHON        (environment variable) the Python 3.11 or newer to make the environment with
  ASYMPO_VENV   (environment variable) folder of the environment; default: .venv in the repository
EOF
}

case ${1:-} in
  -h | --help)
    usage
    exit 0
    ;;
  -*) workdir=$ROOT/runs/quickstart ;;
  "")
    workdir=$ROOT/runs/quickstart
    [ $# -eq 0 ] || shift
    ;;
  *)
    workdir=$(absolute_path "$1")
    shift
    ;;
esac

{ mkdir -p "$workdir" && [ -w "$workdir" ]; } 2>/dev/null ||
  fail "$workdir cannot be written: name another folder as the first argument."

prepare_environment ""
cd "$ROOT"

stage() { # NAME COMMAND...
  local name=$1
  shift
  say "$name"
  local status=0
  "$@" || status=$?
  [ $status -ne 2 ] || fail "The input of this stage is wrong, see above: $name."
  case $status in
    75 | 130 | 143) # as in docs/faults.md: nothing failed
      say "Stopped in this stage: $name. The same command carries on." >&2
      exit $status
      ;;
  esac
  [ $status -eq 0 ] ||
    fail "This stage failed with exit status $status: $name. The same command again goes on from here."
}

train() { # OBJECTIVE [TRAIN OPTION]...
  local objective=$1
  shift
  "$VENV_PYTHON" -m asympo_jax.train --config=configs/arithmetic.py \
    --workdir="$workdir/$objective" --config.objective.name="$objective" \
    --config.lag=16 --config.order=ticket --config.warmup.dir="$ROOT/runs/warmup" "$@"
}

start_s=$SECONDS
stage "[1/3] Training with ASymPO in $workdir/asympo" train asympo "$@"
stage "[2/3] Training with REINFORCE in $workdir/reinforce" train reinforce "$@"
stage "[3/3] Drawing both into $workdir/report" \
  "$VENV_PYTHON" -m asympo_jax.report "$workdir/asympo" "$workdir/reinforce" --out="$workdir/report"
say "Next: source $VENV/bin/activate, and the commands of README.md."
say "Done in $((SECONDS - start_s)) s besides installing. The picture: $workdir/report/curves.png"
