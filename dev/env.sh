#!/usr/bin/env bash
# Makes the one Python environment for development and tests, outside the tree, keyed on what it is made of.
# .venv in the checkout is a link to it. A second call with the same inputs does nothing.
set -euo pipefail
. "$(dirname "$0")/common.sh"
project=$(sed -n '/^dependencies/,/^\[project.scripts\]/p' "$root/pyproject.toml")
key=$( (cat "$root/constraints.txt" "$root/constraints.hashes.txt" "$root/dev/overrides.txt"; echo "$project") | sha256sum | cut -c1-12)
venv=$cache/venv-$key
uv=$(uv)
only_one env
# What builds packages from source has its hash too.
builders=(--preview-features build-dependency-hashes --require-build-hashes --build-constraints "$root/dev/installers.txt")

install() {
  local extras="operator trainer rollout runner cli local model wandb tensorboard trackio test"
  rm -rf "$venv"
  "$uv" venv -q --python "$(command -v python3.11 || command -v python3)" "$venv"
  # shellcheck disable=SC2046,SC2086  # one option per extra
  "$uv" pip compile -q --python "$venv/bin/python" --no-header --no-annotate -c "$root/constraints.txt" \
    --override "$root/dev/overrides.txt" $(printf ' --extra %s' $extras) "$root/pyproject.toml" -o "$venv/resolved.txt"
  hashed "$root/constraints.hashes.txt" <"$venv/resolved.txt" >"$venv/requirements.txt"
  UV_LINK_MODE=${UV_LINK_MODE:-hardlink} "$uv" pip install --python "$venv/bin/python" --no-deps --require-hashes \
    "${builders[@]}" -r "$venv/requirements.txt"
}

if [ ! -e "$venv/.complete" ]; then
  # reasoning-gym needs pycosat, which PyPI has as source only.
  command -v gcc >/dev/null || apt_ensure gcc libc6-dev python3-dev
  step env "installing the Python environment, 6 GB with torch and vLLM (once)" install
  # Older environments are of no use once a newer one is complete.
  touch "$venv/.complete"
  find "$cache" -maxdepth 1 -name 'venv-*' ! -path "$venv" -exec rm -rf {} +
fi
# The package itself is editable, so that code changes need no install and vLLM finds the plug-in's entry point.
# The environment is shared by checkouts: the last one to call wins.
installed="$root $(sha256sum < "$root/pyproject.toml")"
before=$(cat "$venv/.root" 2>/dev/null || true)
if [ "$before" != "$installed" ]; then
  other=$(sed -E 's/ [0-9a-f]{64}  -$//' <<<"$before")
  [ ! -d "$other" ] || [ "$other" = "$root" ] ||
    say "the environment runs the code of $root now, and no longer that of $other: run 'make env' there to go back, or give each an ESPALIER_CACHE"
  "$uv" pip install -q --python "$venv/bin/python" --no-deps "${builders[@]}" -e "$root"
  printf %s "$installed" > "$venv/.root"
fi
ln -sfn "$venv" "$root/.venv"
