#!/usr/bin/env bash
# The pod network of our own nodes: on each a bridge for its pod range, and routes to the other nodes' ranges.
# dev/node/network.sh KUBECONFIG. Idempotent; run again after the nodes' containers were restarted.
set -euo pipefail
. "$(dirname "$0")/../common.sh"
. "$root/dev/podman.sh"

nodes() {
  "$bin/kubectl" --kubeconfig "$1" --request-timeout=10s get nodes \
    -o jsonpath='{range .items[*]}{.metadata.name} {.spec.podCIDR} {.status.addresses[?(@.type=="InternalIP")].address}{"\n"}{end}'
}

# A node's range is assigned shortly after it joins.
for _ in $(seq 120); do
  list=$(nodes "$1")
  [ -z "$list" ] || echo "$list" | awk 'NF != 3 {missing = 1} END {exit missing}' && break
  sleep 0.5
done
echo "$list" | awk 'NF != 3 {exit 1}' || die "the nodes have got no pod range within a minute: $list"

while read -r node range _; do
  routes=$(echo "$list" | awk -v node="$node" '$1 != node {print "ip route replace " $2 " via " $3 ";"}')
  podman exec -i "$node" sh -c "cat >/etc/cni/net.d/10-espalier.conflist; sysctl -qw net.ipv4.ip_forward=1; $routes" <<CONF
{"cniVersion": "0.4.0", "name": "espalier", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$range"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
CONF
done <<<"$list"
