#!/usr/bin/env bash
# hud.sh VERSION...: an environment with HUD's unmodified client in each of these versions, beside the project's and
# never in it; only torch, for custom losses, is the project's own (links). Prints the path of each one's Python, one a
# line. Called by tests/compat; made once per version and project environment.
set -euo pipefail
. "$(dirname "$0")/common.sh"
only_one hud-clients
# The wheel pins typer>=0.9.0 only, and its command line breaks with typer 0.27.
pins='typer<0.27'
uv=$(uv)
torch=$("$root/.venv/bin/python" -c 'from importlib.metadata import distribution as d; print(d("torch").locate_file("").resolve(), d("torch").version)')
for version in "$@"; do
  venv=$cache/hud-$version-$(echo "$pins $torch" | hash_of dev/torch_links.py)
  if [ ! -e "$venv/.complete" ]; then
    say "making the environment of hud $version"
    rm -rf "$venv"
    "$uv" venv -q --python "$root/.venv/bin/python" "$venv"
    "$uv" pip install -q --python "$venv/bin/python" "hud==$version" "$pins" >&2
    "$root/.venv/bin/python" "$root/dev/torch_links.py" "$venv/torch" "$venv"/lib/python*/site-packages >&2
    "$venv/bin/python" -c 'import torch; from hud import TrainingClient' >&2
    touch "$venv/.complete"
  fi
  echo "$venv/bin/python"
done
