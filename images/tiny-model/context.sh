#!/usr/bin/env bash
# Prints the directory with the tiny random model of the tests, made once.
set -euo pipefail
. "$(dirname "$0")/../../dev/common.sh"

directory=$cache/models/tiny-$(hash_of dev/tiny_model.py </dev/null)
if [ ! -d "$directory" ]; then
  rm -rf "$cache/models/"tiny-*
  "$root/.venv/bin/python" "$root/dev/tiny_model.py" "$directory.tmp" >"$cache/models/tiny.log" 2>&1 || die "cannot make the tiny model: see $cache/models/tiny.log."
  mv "$directory.tmp" "$directory"
fi
echo "$directory"
