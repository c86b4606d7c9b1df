#!/usr/bin/env bash
# tinker.sh VERSION...: an environment with the unmodified SDK `tinker` in each of these versions, beside the project's
# and never in it; the newest has `tinker-cookbook` too. Only torch is the project's own (links). Prints the path of each
# one's Python, one a line. Called by tests/tinker; made once per version and project environment.
set -euo pipefail
. "$(dirname "$0")/common.sh"
only_one tinker-clients
# The cookbook that takes this SDK and no older one.
newest=0.38.0
cookbook='tinker-cookbook[math-rl,multiplayer-rl]==0.6.1'
# The cookbook asks for a tml-renderers that is on no index; it reads that package only for its vendor's own models.
overrides='torch ; sys_platform == "never"
tml-renderers'
uv=$(uv)
torch=$("$root/.venv/bin/python" -c 'from importlib.metadata import distribution as d; print(d("torch").locate_file("").resolve(), d("torch").version)')
for version in "$@"; do
  packages=("tinker==$version")
  [ "$version" != "$newest" ] || packages+=("$cookbook")
  venv=$cache/tinker-$version-$(echo "${packages[*]} $overrides $torch" | hash_of dev/torch_links.py)
  if [ ! -e "$venv/.complete" ]; then
    say "making the environment of ${packages[*]}"
    rm -rf "$venv"
    "$uv" venv -q --python "$root/.venv/bin/python" "$venv"
    "$uv" pip install -q --python "$venv/bin/python" --override <(echo "$overrides") "${packages[@]}" >&2
    "$root/.venv/bin/python" "$root/dev/torch_links.py" "$venv/torch" "$venv"/lib/python*/site-packages >&2
    "$venv/bin/python" -c 'import torch, tinker' >&2
    touch "$venv/.complete"
  fi
  echo "$venv/bin/python"
done
