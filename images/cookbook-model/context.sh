#!/usr/bin/env bash
# Prints the directory with the tiny model of the cookbooks, made once: of wide weights, so that an adapter can teach it.
set -euo pipefail
. "$(dirname "$0")/../../dev/common.sh"

directory=$cache/models/cookbook-$(hash_of dev/tiny_model.py </dev/null)
if [ ! -d "$directory" ]; then
  rm -rf "$cache/models/"cookbook-*
  mkdir -p "$cache/models"
  "$root/.venv/bin/python" "$root/dev/tiny_model.py" "$directory.tmp" 0.2 >"$cache/models/cookbook.log" 2>&1 || die "cannot make the cookbooks' model: see $cache/models/cookbook.log."
  mv "$directory.tmp" "$directory"
fi
echo "$directory"
