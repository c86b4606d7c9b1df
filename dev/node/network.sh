#!/usr/bin/env bash
# The pod network of our own nodes: on each a link per pod, and routes to the other nodes' ranges. Pods keep their addresses
# among each other, by which policies know them; what leaves the cluster has the node's.
# dev/node/network.sh KUBECONFIG RANGE, which all pods are in. Idempotent; run again after the nodes' containers were restarted.
set -euo pipefail
. "$(dirname "$0")/../common.sh"
. "$root/dev/podman.sh"

nodes() {
  "$bin/kubectl" --kubeconfig "$1" --request-timeout=10s get nodes \
    -o jsonpath='{range .items[*]}{.metadata.name} {.spec.podCIDR} {.status.addresses[?(@.type=="InternalIP")].address}{"\n"}{end}'
}

# kube-network-policies (policies.yaml) adds a rule of nftables that queues packets for it. Some kernels lack that of
# nftables, and have iptables' alone: there the rule is ours, to the same queue. Forwarded packets are those of pods.
queue_without_nft() {
  podman exec -i "$1" sh -s <<'SH'
nft -c 'add table inet probe; add chain inet probe queued { type filter hook postrouting priority 0; }; add rule inet probe queued queue num 100' 2>/dev/null && exit
rule="FORWARD -m conntrack --ctstate NEW -j NFQUEUE --queue-num 100"
iptables -t mangle -C $rule 2>/dev/null || iptables -t mangle -A $rule
SH
}

# Until it listens no packet of a connection that is new gets through.
wait_for_queue() {
  for _ in $(seq 120); do
    podman exec "$1" grep -q '^ *100 ' /proc/net/netfilter/nfnetlink_queue && return
    sleep 0.5
  done
  die "nothing enforces network policies on $1 within a minute: see 'kubectl -n kube-system logs daemonset/kube-network-policies'"
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
  masquerade="POSTROUTING -s $range ! -d $2 -j MASQUERADE"
  podman exec -i "$node" sh -c "cat >/etc/cni/net.d/10-espalier.conflist; sysctl -qw net.ipv4.ip_forward=1; $routes
    iptables -t nat -C $masquerade 2>/dev/null || iptables -t nat -A $masquerade" <<CONF
{"cniVersion": "0.4.0", "name": "espalier", "plugins": [
  {"type": "ptp", "ipMasq": false,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$range"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
CONF
  queue_without_nft "$node"
done <<<"$list"
while read -r node _; do wait_for_queue "$node" </dev/null; done <<<"$list"
