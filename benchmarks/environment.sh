#!/usr/bin/env bash
# Makes the environment of a peer that benchmarks compare with.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

usage() {
  cat <<'TEXT'
Usage: bash benchmarks/environment.sh transformers|trl|tunix [PIP OPTION]...

Makes benchmarks/.venvs/NAME with what benchmarks/requirements-NAME.txt says. An environment that is
there already is brought to those versions.

  PYTHON  (environment variable) the Python 3.11 or newer to make it with; default: python3
TEXT
}

case ${1:-} in
  transformers | trl | tunix) name=$1 ;;
  -h | --help)
    usage
    exit 0
    ;;
  *)
    usage >&2
    exit 2
    ;;
esac
shift

venv=$HERE/.venvs/$name
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
if [ "$name" != tunix ]; then
  # By itself: otherwise every package would be looked for on this index, too. A CPU build comes
  # without the gigabytes of CUDA.
  "$venv/bin/python" -m pip install "$@" --extra-index-url https://download.pytorch.org/whl/cpu \
    torch==2.13.0
fi
"$venv/bin/python" -m pip install "$@" -r "$HERE/requirements-$name.txt"
printf '%s\n' "Made $venv"
