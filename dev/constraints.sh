#!/usr/bin/env bash
# Writes constraints.txt: the newest versions that pyproject.toml's extras resolve to together.
# An image's environment and the tests' use exactly these.
set -euo pipefail
. "$(dirname "$0")/common.sh"

extras=operator,trainer,rollout,runner,cli,local,model,wandb,tensorboard,trackio,test
# shellcheck disable=SC2046  # one option per extra
"$(uv)" pip compile -q --python-version 3.11 --no-header --no-annotate --override "$root/dev/overrides.txt" \
  $(printf ' --extra %s' ${extras//,/ }) -o "$cache/constraints.new" "$root/pyproject.toml"
{
  echo "# Every Python version that Espalier is built and tested with, operator to vLLM."
  echo "# Regenerate: make constraints"
  cat "$cache/constraints.new"
} >"$root/constraints.txt"
rm "$cache/constraints.new"
