#!/usr/bin/env bash
# packages.sh REQUIREMENT: an environment with one package that a user's image or server has and ours never has, such as
# openenv==0.10.0. Prints the path of its Python. Called by the tests marked `packages`; made once per requirement.
set -euo pipefail
. "$(dirname "$0")/common.sh"
only_one packages
uv=$(uv)
venv=$cache/package-$(echo "$1" | hash_of)
if [ ! -e "$venv/.complete" ]; then
  say "making the environment of $1"
  rm -rf "$venv"
  "$uv" venv -q --python "$root/.venv/bin/python" "$venv"
  "$uv" pip install -q --python "$venv/bin/python" "$1" >&2
  touch "$venv/.complete"
fi
echo "$venv/bin/python"
