#!/usr/bin/env bash
# Builds docs/ as a site into out/docs ($ESPALIER_OUT/docs), with its links checked. The generator has a small environment
# of its own (140 MB) in $ESPALIER_CACHE, pinned in docs/constraints.txt; reading the site needs no network.
#   dev/docs.sh         builds
#   dev/docs.sh pin     writes docs/constraints.txt: the newest versions that resolve together, with their hashes
set -euo pipefail
. "$(dirname "$0")/common.sh"
cd "$root"
uv=$(uv)

if [ "${1:-}" = pin ]; then
  { sed -n '/^#/p' docs/constraints.txt
    echo zensical | "$uv" pip compile -q --python-version 3.11 --no-header --no-annotate --generate-hashes -; } >"$cache/docs-constraints.new"
  mv "$cache/docs-constraints.new" docs/constraints.txt
  exit
fi

only_one docs
venv=$cache/docs-$(hash_of docs/constraints.txt </dev/null)
make_environment() {
  rm -rf "$venv"
  "$uv" venv -q --python "$(command -v python3.11 || command -v python3)" "$venv"
  "$uv" pip install -q --python "$venv/bin/python" --no-deps --require-hashes -r docs/constraints.txt
  touch "$venv/.complete"
}
[ -e "$venv/.complete" ] || step docs "installing the generator of the site (once)" make_environment

out=${ESPALIER_OUT:-$root/out}
mkdir -p "$out"
"$venv/bin/python" dev/docs/site_source.py "$out/docs-source"
# The configuration says out/docs; paths in it are relative to its own place.
sed "s#^docs_dir: .*#docs_dir: docs-source#; s#^site_dir: .*#site_dir: docs#" mkdocs.yml >"$out/mkdocs.yml"
"$venv/bin/zensical" build --clean --strict --config-file "$out/mkdocs.yml"
# A reader's browser asks nobody else: neither for fonts nor for scripts.
if grep -rnoE '<(script|img|iframe|link)[^>]*(src|href)="?https?://[^ >]*' "$out/docs" --include='*.html' >&2; then
  die "the pages above load something from another host: keep it in docs/, or switch off what wants it in mkdocs.yml."
fi
say "the site is $out/docs/index.html; with search: python3 -m http.server -d $out/docs"
