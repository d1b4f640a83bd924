#!/usr/bin/env bash
# One run on this machine: laptop, workstation, one host with GPUs or one TPU VM.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=commands.sh
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"

usage() {
  cat <<'END'
Usage: bash launch/local.sh [FLAG]... -- --config=FILE --workdir=DIR [TRAIN FLAG]...

Installs asympo_jax into an environment of its own, or finds that it stands, and trains. The same
command again carries on where it was stopped. The exit code is that of train (docs/faults.md).

  --extra=NAME,...  extras of pyproject.toml to install: gpu, tpu, data, math; default: none
  --install_only    installs, and starts nothing
  --dry_run         prints the commands, and runs none

  PYTHON            (environment variable) the Python 3.11 or newer to make the environment with
  ASYMPO_VENV       (environment variable) folder of the environment; default: .venv in the repository

Example: bash launch/local.sh --extra=gpu -- --config=configs/arithmetic.py --workdir=runs/first
END
}

extra="" install_only=""
parse_flags "extra" "install_only dry_run" "$@"
require_extra "$extra"
[ -n "$install_only" ] || require_workdir any

if [ -n "$dry_run" ]; then
  show_environment "$extra"
  [ -n "$install_only" ] || show "$VENV_PYTHON" -m asympo_jax.train "${TRAIN[@]}"
  exit 0
fi
prepare_environment "$extra"
[ -z "$install_only" ] || exit 0
# Signals reach train itself, and its exit code is that of this script.
exec "$VENV_PYTHON" -m asympo_jax.train "${TRAIN[@]}"
