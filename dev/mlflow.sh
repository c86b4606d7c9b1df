#!/usr/bin/env bash
# mlflow.sh: an environment with MLflow's server, beside the project's and never in it: the two want other versions of
# the same packages. Prints the path of its Python. Called by tests/tracking; made once.
set -euo pipefail
. "$(dirname "$0")/common.sh"
only_one mlflow
pin=mlflow==3.17.2
venv=$cache/mlflow-$(echo "$pin" | hash_of)
if [ ! -e "$venv/.complete" ]; then
  uv=$(uv)
  say "making the environment of $pin"
  rm -rf "$venv"
  "$uv" venv -q --python "$root/.venv/bin/python" "$venv"
  "$uv" pip install -q --python "$venv/bin/python" "$pin" >&2
  touch "$venv/.complete"
fi
echo "$venv/bin/python"
