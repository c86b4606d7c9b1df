#!/usr/bin/env bash
# krew.sh BASE_URL: the plugin of kubectl as krew installs it, under out/krew ($OUT): an archive with all packages for each
# of $PLATFORMS and $PYTHONS, and the manifest that names them. BASE_URL is where the archives will be published.
#   kubectl krew install --manifest out/krew/espalier.yaml --archive out/krew/espalier-0.1.0-linux-amd64.tar.gz
set -euo pipefail
. "$(dirname "$0")/common.sh"
url=${1:-}
need_url "$url"
read -ra pythons <<<"${PYTHONS:-3.11 3.12 3.13}"
read -ra platforms <<<"${PLATFORMS:-linux/amd64}"
declare -A targets=([linux/amd64]=x86_64-manylinux_2_28 [linux/arm64]=aarch64-manylinux_2_28
  [darwin/amd64]=x86_64-apple-darwin [darwin/arm64]=aarch64-apple-darwin)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml")
out=${OUT:-$root/out/krew}
only_one krew
uv=$(uv)

# What the command line needs, at the versions of the project; matplotlib alone would be as large again.
requirements() {
  "$root/.venv/bin/python" - "$root/pyproject.toml" <<'PYTHON'
import sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
needed = project["dependencies"] + project["optional-dependencies"]["cli"]
print("\n".join(name for name in needed if not name.startswith("matplotlib")))
PYTHON
}

# Packages of all Pythons in one directory: what is compiled carries the Python in its name, the rest is the same.
packages() {
  local target=$1 place=$2 python
  [ -e "$place/.complete" ] && return
  rm -rf "$place" && mkdir -p "$place/lib"
  for python in "${pythons[@]}"; do
    say "packages of Python $python for $target"
    requirements | "$uv" pip compile -q --python-version "$python" --python-platform "$target" --no-header --no-annotate \
      --constraint "$root/constraints.txt" -o "$place/resolved.txt" - >&2
    hashed "$root/constraints.hashes.txt" <"$place/resolved.txt" >"$place/requirements.txt"
    "$uv" pip install -q --target "$place/$python" --python "$root/.venv/bin/python" --no-installer-metadata --no-deps \
      --python-version "$python" --python-platform "$target" --require-hashes -r "$place/requirements.txt" >&2
    cp -r "$place/$python/." "$place/lib"
    rm -rf "${place:?}/$python"
  done
  rm -rf "$place/lib/bin" "$place/lib/.lock" "$place/resolved.txt" "$place/requirements.txt"
  find "$place" -name __pycache__ -prune -exec rm -rf {} +
  touch "$place/.complete"
}

mkdir -p "$out"
abis=$(printf 'cp%s ' "${pythons[@]//./}")
sed -e "s|VERSION|v$version|; s|HOMEPAGE|${url%/releases/download}|; s|PYTHONS|$(echo "${pythons[*]}" | sed 's/ /, /g')|; /^#/d" \
  "$root/packaging/krew/espalier.yaml" >"$out/.espalier.yaml"
for platform in "${platforms[@]}"; do
  target=${targets[$platform]:?no such platform: $platform}
  place=$cache/krew-$({ requirements; echo "$target ${pythons[*]}"; } | hash_of constraints.txt constraints.hashes.txt)
  packages "$target" "$place"
  stage=$(mktemp -d)
  cp -r "$place/lib" "$root/packaging/krew/kubectl-espalier" "$root/LICENSE" "$stage"
  cp -r "$root/operator/espalier" "$stage/lib/"
  # The gateway's page is of images alone: here would be whatever was built last, if anything.
  rm -rf "$stage/lib/espalier/gateway/console/built"
  find "$stage" -name __pycache__ -prune -exec rm -rf {} +
  echo "$abis" >"$stage/abis"
  archive=espalier-$version-${platform/\//-}.tar.gz
  # The same files give the same sum.
  tar -C "$stage" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=go=rX,u+w -cf - . | gzip -n >"$out/$archive"
  rm -rf "$stage"
  cat >>"$out/.espalier.yaml" <<YAML
    - selector:
        matchLabels: {os: ${platform%/*}, arch: ${platform#*/}}
      uri: $url/v$version/$archive
      sha256: $(sha256sum "$out/$archive" | cut -d' ' -f1)
      bin: kubectl-espalier
YAML
  say "$archive, $(du -h "$out/$archive" | cut -f1)"
done
mv "$out/.espalier.yaml" "$out/espalier.yaml"
