#!/usr/bin/env bash
# The local kind cluster `espalier`, with a registry at localhost:5000 and a read-write-many StorageClass.
#   dev/cluster.sh up          make it, or repair it; NODES=2 gives two nodes
#   dev/cluster.sh down        remove everything but caches (binaries, node image, pulled and pushed images)
#   dev/cluster.sh clean       down, and the stored images too
#   dev/cluster.sh tools       only the programs that it is made of and used with
#   dev/cluster.sh status      what runs; fails when the cluster is not ready
#   dev/cluster.sh kubeconfig  print the path of the kubeconfig to use
# CLUSTER=current uses the kubeconfig in use and makes nothing.
set -euo pipefail
. "$(dirname "$0")/common.sh"

name=espalier
state=$cache/cluster.state
volumes=$cache/volumes
stores=$cache/node-store
config=$cache/kind.yaml
pods=10.244.0.0/16
kubeconfig=$cache/kubeconfig
[ "${CLUSTER:-}" = current ] && kubeconfig=${KUBECONFIG:-$HOME/.kube/config}
kubectl() { "$bin/kubectl" --kubeconfig "$kubeconfig" --request-timeout=10s "$@"; }

# What the running cluster was made of; another answer than the recorded one means that it must be made anew.
wanted_state() { echo "$engine $1 $2 $(hash_of dev/cluster.sh dev/node/network.sh </dev/null)"; }

write_kind_config() {
  local count=$1 i role node
  cat >"$config" <<YAML
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
name: $name
networking: {podSubnet: $pods, serviceSubnet: 10.96.0.0/16}
containerdConfigPatches:
- |
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
kubeadmConfigPatches:
- |
  kind: KubeletConfiguration
  failCgroupV1: false
  maxOpenFiles: 20000
- |
  kind: KubeProxyConfiguration
  conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
nodes:
YAML
  for i in $(seq "$count"); do
    role=worker node=$name-worker
    [ "$i" = 1 ] && role=control-plane node=$name-control-plane
    [ "$i" -gt 2 ] && node=$name-worker$((i - 1))
    mkdir -p "$volumes" "$cache/certs.d/$local_registry"
    cat >>"$config" <<YAML
- role: $role
  extraMounts:
  - {hostPath: "$volumes", containerPath: /var/espalier-volumes}
  - {hostPath: "$cache/certs.d", containerPath: /etc/containerd/certs.d, readOnly: true}
YAML
    # Stock node images hold the control plane's images in this directory, so only our own node keeps it outside.
    [ "$engine" = podman ] || continue
    mkdir -p "$stores/$node"
    echo "  - {hostPath: \"$stores/$node\", containerPath: /var/lib/containerd}" >>"$config"
  done
  printf 'server = "http://%s:5000"\n[host."http://%s:5000"]\n' "$registry_container" "$registry_container" >"$cache/certs.d/$local_registry/hosts.toml"
}

# wait_for SECONDS WHAT COMMAND...: retries a command until it succeeds.
wait_for() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || die "$what did not become ready in time: see '$0 status' and '$engine logs $name-control-plane'."
    sleep 0.5
  done
}

# Stock images use kindnet and a class that serves one node: the class gets the shared directory, as ours has it.
share_stock_volumes() {
  kubectl -n local-path-storage patch configmap local-path-config --type merge \
    -p '{"data": {"config.json": "{\"sharedFileSystemPath\": \"/var/espalier-volumes\"}"}}' >/dev/null
  kubectl -n local-path-storage rollout restart deployment/local-path-provisioner >/dev/null
}

create_nodes() {
  # They outlive this script and must not keep its lock.
  exec {lock_fd}>&-
  # A kind that outlives this script would race with the next run's.
  setpriv --pdeathsig TERM "$bin/kind" create cluster --config "$config" --image "$1" --kubeconfig "$kubeconfig"
}

create() {
  local count=$1 image=$2
  say "creating the cluster: $count node(s) on $engine"
  ensure_network
  write_kind_config "$count"
  step kind "starting the nodes" create_nodes "$image"
  if [ "$engine" = podman ]; then "$root/dev/node/network.sh" "$kubeconfig" "$pods"; else share_stock_volumes; fi
  kubectl taint nodes --all node-role.kubernetes.io/control-plane- >/dev/null 2>&1 || true
  kubectl -n kube-system scale deployment/coredns --replicas=1 >/dev/null
  wait_for 120 "the nodes" kubectl wait --for=condition=Ready nodes --all --timeout=5s
  wait_for 120 "the default ServiceAccount" kubectl get serviceaccount default
  wait_for 120 "CoreDNS" kubectl -n kube-system rollout status deployment/coredns --timeout=5s
  wait_for 120 "the storage provisioner" kubectl -n local-path-storage rollout status deployment/local-path-provisioner --timeout=5s
}

delete() {
  [ -x "$bin/kind" ] && "$bin/kind" delete cluster --name "$name" --kubeconfig "$kubeconfig" >/dev/null 2>&1
  # kind forgets nodes that it was interrupted in making.
  "$engine" ps -aq --filter "label=io.x-k8s.kind.cluster=$name" | xargs -r "$engine" rm -fv >/dev/null 2>&1
  rm -f "$state" "$kubeconfig" "$kubeconfig.lock"
  [ ! -d "$volumes" ] || find "$volumes" -mindepth 1 -delete
}

tools() {
  . "$root/dev/engine.sh"
  if [ "$engine" = docker ]; then "$root/dev/tools.sh" kind clients; else "$root/dev/tools.sh" nodes kind clients; fi
}

up() {
  local image count started=$SECONDS
  tools
  only_one cluster
  [ "$engine" = docker ] || { need_root "making the cluster with podman"; mkdir -p /lib/modules; }
  image=$(node_image)
  "$root/dev/registry.sh" up {lock_fd}>&-
  count=${NODES:-$(cut -d' ' -f2 "$state" 2>/dev/null || echo 1)}
  if [ "$(cat "$state" 2>/dev/null)" = "$(wanted_state "$count" "$image")" ] && kubectl get --raw /readyz >/dev/null 2>&1; then
    [ "$engine" = docker ] || "$root/dev/node/network.sh" "$kubeconfig" "$pods"
  else
    delete || true
    create "$count" "$image"
    wanted_state "$count" "$image" >"$state"
  fi
  say "the cluster is ready after $((SECONDS - started)) s: export KUBECONFIG=$kubeconfig"
}

down() {
  only_one cluster
  . "$root/dev/engine.sh"
  delete || true
  "$root/dev/registry.sh" down
  "$engine" network rm "$network" >/dev/null 2>&1 || true
  say "the cluster is gone; caches are kept in $cache"
}

status() {
  local ready=0
  . "$root/dev/engine.sh"
  [ -f "$state" ] || { echo "cluster: not there (make cluster-up)"; return 1; }
  kubectl get nodes -o wide && kubectl get pods -A || ready=1
  if running "$registry_container"; then echo "registry: $local_registry"; else echo "registry: not running (make cluster-up)"; ready=1; fi
  echo "kubeconfig: $kubeconfig"
  return $ready
}

current() {
  "$root/dev/tools.sh" clients
  kubectl get nodes -o wide || die "the kubeconfig in use ($kubeconfig) does not answer: set KUBECONFIG, or leave CLUSTER unset for a local cluster."
}

case ${CLUSTER:-}:${1:-} in
*:kubeconfig) echo "$kubeconfig" ;;
current:tools) "$root/dev/tools.sh" clients ;;
current:up | current:status) current ;;
current:down | current:clean) say "CLUSTER=current: nothing was made, nothing is removed" ;;
:tools) tools ;;
:up) up ;;
:down) down ;;
:clean)
  "$0" down
  # The storage driver leaves a mount of the directory on itself.
  umount "$cache/containers/overlay" 2>/dev/null || true
  rm -rf "$stores" "$cache/registry" "$cache/containers" "$cache/images.env"
  ;;
:status) status ;;
*) die "usage: [NODES=n] [CLUSTER=current] dev/cluster.sh up|down|clean|tools|status|kubeconfig" ;;
esac
