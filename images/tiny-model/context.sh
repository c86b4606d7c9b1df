#!/usr/bin/env bash
# Prints the directory with the tiny random model of the tests, made once.
set -euo pipefail
. "$(dirname "$0")/../../dev/common.sh"

directory=$cache/models/tiny-$(hash_of dev/tiny_model.py </dev/null)
if [ ! -d "$directory" ]; then
  rm -rf "$cache/models/"tiny-*
  "$root/.venv/bin/python" "$root/dev/tiny_model.py" "$directory.tmp" >/dev/null
  mv "$directory.tmp" "$directory"
fi
echo "$directory"
