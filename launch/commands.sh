# shellcheck shell=bash
# Sourced by the launchers beside it: their flags, dry runs, and what an exit code means.
#
# Decisions:
# - Flags are --name=value, as those of the Python commands; what follows -- is for `train`.
# - Wrong input ends with 2 and nothing started, as in `train`.
# - A dry run prints the commands, one a line, quoted for a shell, and runs none.

# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

dry_run=""
TRAIN=() # the flags of `train`
# Has several processes find each other, on TPU VMs, Slurm and GKE.
# shellcheck disable=SC2034
DISTRIBUTED_FLAG=--distributed

refuse() {
  printf '%s\n' "$*" >&2
  exit 2
}

show() { # COMMAND... as one line for a shell
  local word line="" quote="'"
  for word in "$@"; do
    case $word in
      "" | *[!A-Za-z0-9_./:=,@%+-]*) word="'${word//$quote/$quote\\$quote$quote}'" ;;
    esac
    line="$line${line:+ }$word"
  done
  say "$line"
}

perform() { # COMMAND...
  if [ -n "$dry_run" ]; then show "$@"; else "$@"; fi
}

take_action() { # "ACTION..." ARGUMENT...: sets action
  action=${2:-}
  case $action in
    -h | --help)
      usage
      exit 0
      ;;
  esac
  case " $1 " in
    *" $action "*) [ -z "$action" ] || return 0 ;;
  esac
  refuse "${action:-ACTION}: must be one of ${1// /, }, see --help."
}

parse_flags() { # "FLAG..." "SWITCH..." ARGUMENT...: sets the variable of each, and TRAIN
  local flags=$1 switches=$2 flag
  shift 2
  while [ $# -gt 0 ]; do
    flag=${1#--}
    flag=${flag%%=*}
    case $1 in
      -h | --help)
        usage
        exit 0
        ;;
      --)
        shift
        TRAIN=("$@")
        return 0
        ;;
      --*=*)
        case " $flags " in
          *" $flag "*) printf -v "$flag" %s "${1#*=}" ;;
          *) refuse "$1: there is no such flag here (flags of train go after --), see --help." ;;
        esac
        ;;
      *)
        case "$1: $switches " in
          "--$flag:"*" $flag "*) printf -v "$flag" yes ;;
          *) refuse "$1: there is no such flag here (flags of train go after --), see --help." ;;
        esac
        ;;
    esac
    shift
  done
}

require_extra() { # EXTRA,...: each is one of pyproject.toml
  local name
  case $1 in
    ,* | *, | *,,* | *[!a-z,]*) refuse "--extra=$1: must be names, with commas between." ;;
  esac
  for name in ${1//,/ }; do
    grep -q "^$name = \[" "$ROOT/pyproject.toml" ||
      refuse "--extra=$1: pyproject.toml has no extra named $name."
  done
}

require_number() { # FLAG VALUE
  case $2 in
    "" | *[!0-9]*) refuse "--$1=$2: must be a whole number." ;;
  esac
}

require_workdir() { # any|absolute: TRAIN names the run's directory
  local word
  for word in ${TRAIN[@]+"${TRAIN[@]}"}; do
    case $word in
      --workdir=/?*) return 0 ;;
      --workdir=?*)
        [ "$1" != any ] || return 0
        refuse "$word: must be absolute, on a file system that all hosts see."
        ;;
    esac
  done
  refuse "The directory of the run is missing: add --workdir=DIR after --, such as in --help."
}

show_environment() { # EXTRA: what prepare_environment would run
  local python
  if is_installed "$1"; then return 0; fi
  if [ ! -x "$VENV_PYTHON" ]; then
    python=$(find_python) || exit 1
    show "$python" -m venv "$VENV"
  fi
  show "$VENV_PYTHON" -m pip install --disable-pip-version-check --no-input \
    --editable "$ROOT${1:+[$1]}"
}

# shellcheck disable=SC2154
count_restart() { # REASON: one more of restarts, of max_restarts at most
  restarts=$((restarts + 1))
  [ "$restarts" -le "$max_restarts" ] ||
    fail "$1, after $max_restarts restarts: the same command goes on from here."
  say "$1: restart $restarts of at most $max_restarts."
}

starts_again() { # EXIT CODE of train: whether the same command is to be started again
  case $1 in
    75 | 137 | 143) return 0 ;; # saved or taken, killed, terminated: docs/faults.md
    *) return 1 ;;
  esac
}
