#!/usr/bin/env bash
# preflight.sh try|demo|test: whether this machine can do it, in the first second; names all that is missing at once.
# PREFLIGHT=skip leaves it out, for a machine that you know better.
set -euo pipefail
. "$(dirname "$0")/common.sh"

problems=()
problem() { problems+=("$*"); }
gib() { echo $(($1 / 1024 / 1024)); } # of KiB

# What the caches take when full, and what a machine with full caches still needs.
need_disk() {
  local cold=$1 warm=$2 needed free
  needed=$cold
  [ ! -e "$cache/images.env" ] || needed=$warm
  free=$(gib "$(df -Pk "$cache" | awk 'NR == 2 {print $4}')")
  [ "$free" -ge "$needed" ] || problem "disk: $free GiB are free at $cache, $needed are needed: set ESPALIER_CACHE to a larger disk"
}

# A machine sold as 24 GB shows a little less.
need_memory() {
  local total
  total=$(gib "$(awk '/^MemTotal/ {print $2}' /proc/meminfo)")
  [ "$total" -ge "$1" ] || problem "memory: this machine has $total GiB, $1 are needed"
}

# need_programs PACKAGE=PROGRAM...: root on Debian gets the missing ones by itself, later.
need_programs() {
  local pair missing=()
  for pair in "$@"; do command -v "${pair#*=}" >/dev/null || missing+=("${pair%%=*}"); done
  [ ${#missing[@]} -eq 0 ] || { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; } ||
    problem "programs: install the packages ${missing[*]}, for instance with 'sudo apt-get install ${missing[*]}'"
}

need_python() {
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    problem "python: $(python3 --version 2>&1 || echo 'no python3'); 3.11 or newer is needed"
}

need_engine() {
  [ "${CLUSTER:-}" != current ] || return 0
  docker info >/dev/null 2>&1 && return 0
  [ "$(id -u)" = 0 ] || problem "rights: without a Docker engine the cluster needs root: run this with 'sudo -E'"
  [ "$(uname -m)" = x86_64 ] || problem "processor: this is $(uname -m); without a Docker engine the nodes are built for x86_64 alone"
  command -v apt-get >/dev/null || problem "system: without a Docker engine the nodes are made of Debian packages, and there is no apt-get"
}

# The registry's port: free, or held by the registry of an earlier call.
need_port() {
  [ "$registry" = "$local_registry" ] || return 0
  ! (exec 3<>/dev/tcp/127.0.0.1/5000) 2>/dev/null || grep -q . "$cache/registry.container" 2>/dev/null ||
    problem "ports: something else listens on 127.0.0.1:5000: stop it, or name a registry of your own in ESPALIER_REGISTRY"
}

[ "${PREFLIGHT:-}" != skip ] || exit 0
case ${1:-} in
try)
  need_disk 12 2
  need_memory 7
  need_programs util-linux=flock coreutils=sha256sum gcc=gcc
  ;;
demo | test)
  need_engine
  need_disk 40 8
  need_memory 20
  need_programs util-linux=flock util-linux=setpriv coreutils=sha256sum curl=curl jq=jq tar=tar make=make gcc=gcc
  need_port
  ;;
*) die "usage: dev/preflight.sh try|demo|test" ;;
esac
need_python
[ ${#problems[@]} -eq 0 ] && exit 0
printf 'error: this machine is not ready for make %s:\n' "$1" >&2
printf '  - %s\n' "${problems[@]}" >&2
exit 1
