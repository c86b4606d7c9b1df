#!/usr/bin/env bash
# The local registry: a container on the nodes' network, at localhost:5000 from this machine.
#   dev/registry.sh up | down | clean    (down keeps what is stored, clean removes it)
set -euo pipefail
. "$(dirname "$0")/common.sh"
. "$(dirname "$0")/engine.sh"

store=$cache/registry

answers() { curl -fsS -m 2 "http://$local_registry/v2/" >/dev/null 2>&1; }

up() {
  local command image
  [ "$registry" = "$local_registry" ] || return 0
  running "$registry_container" && answers && return
  if answers; then die "something else answers on $local_registry: stop it, the local registry needs that port."; fi
  image=$(registry_image)
  "$engine" rm -f "$registry_container" >/dev/null 2>&1 || true
  ensure_network
  mkdir -p "$store"
  cat >"$cache/registry.yml" <<CONF
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: /var/lib/registry}, delete: {enabled: true}}
http: {addr: ":5000"}
CONF
  if [ "$engine" = docker ]; then command=registry; else command=/usr/bin/docker-registry; fi
  # The container outlives this script and must not keep its lock.
  "$engine" run -d --name "$registry_container" --network "$network" -p "127.0.0.1:5000:5000" \
    -v "$store:/var/lib/registry" -v "$cache/registry.yml:/etc/registry.yml:ro" \
    --entrypoint "$command" "$image" serve /etc/registry.yml {lock_fd}>&- >"$cache/registry.container"
  for _ in $(seq 50); do answers && return; sleep 0.2; done
  die "the registry does not answer on $local_registry within 10 s: see '$engine logs $registry_container'."
}

case ${1:-} in
up)
  only_one registry
  up
  ;;
down)
  "$engine" rm -f "$registry_container" >/dev/null 2>&1 || true
  rm -f "$cache/registry.container"
  ;;
clean) "$0" down; rm -rf "$store" ;;
*) die "usage: dev/registry.sh up|down|clean" ;;
esac
