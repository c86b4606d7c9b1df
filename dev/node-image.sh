#!/usr/bin/env bash
# Makes an image once per content and prints its name.
#   dev/node-image.sh base   the node's Debian packages, the registry among them
#   dev/node-image.sh node   kind's node image: the base, our binaries (dev/tools.sh nodes) and the control plane's images
#   dev/node-image.sh name   what the node image is called, without making it
set -euo pipefail
. "$(dirname "$0")/common.sh"
. "$(dirname "$0")/podman.sh"

packages=systemd,systemd-sysv,dbus,ca-certificates,kmod,iproute2,iptables,nftables,procps,util-linux,mount,hostname
packages=$packages,conntrack,ethtool,libseccomp2,curl,jq,socat,containerd,runc,containernetworking-plugins,busybox-static,docker-registry

kubernetes=$(kubernetes_version)
base_key=$(echo "$packages" | hash_of)
base=localhost/espalier-node-base:$base_key
# Of dev/go the modules that nodes are made of, and no others: a new key remakes the cluster.
key=$(echo "$base_key" | hash_of dev/node/{archive.py,configure.sh,Dockerfile,load-images.sh,load-images.service,policies.yaml,storage.yaml} dev/go/{cluster,policies}/go.{mod,sum} dev/node-image.sh)
image=localhost/espalier-node:$key
parts=$cache/node-parts-$base_key
work=$cache/node-image.tmp

# The files that kube-proxy's image needs besides its binary: iptables, conntrack and their libraries.
proxy_root() {
  local programs="/usr/sbin/xtables-nft-multi /usr/sbin/conntrack /usr/bin/kmod" files
  files=$(for program in $programs; do chroot "$1" ldd "$program"; done | grep -o '/[^ ]*' | sort -u)
  mkdir -p "$2"
  # shellcheck disable=SC2086  # lists of paths
  (cd "$1" && cp -L --parents $(printf '.%s ' $programs $files) "$2/" && cp -r --parents ./usr/lib/x86_64-linux-gnu/xtables "$2/")
  local name
  for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    ln -s xtables-nft-multi "$2/usr/sbin/$name"
  done
  ln -s ../bin/kmod "$2/usr/sbin/modprobe"
}

build_base() {
  local work=$cache/node-base.tmp
  rm -rf "$work" "$parts"
  mkdir -p "$work" "$parts"
  debian_root "$packages" "$work/rootfs"
  proxy_root "$work/rootfs" "$work/proxy"
  cp "$work/rootfs/usr/bin/busybox" "$parts/busybox"
  tar -C "$work/rootfs" -c . | podman import -q - "$base" >/dev/null
  tar -C "$work/proxy" --sort=name --mtime=@0 --owner=0 --group=0 -cf "$parts/proxy.tar.new" .
  mv "$parts/proxy.tar.new" "$parts/proxy.tar"
  rm -rf "$work"
}

need_base() {
  only_one node-base
  podman image exists "$base" && [ -e "$parts/proxy.tar" ] && return
  need_root "building the node image"
  step node-base "installing the node's Debian packages (once)" build_base
}

stage_context() {
  local images kind_files
  rm -rf "$work"
  mkdir -p "$work/bin"
  kind_files=$(cd "$root/dev/go/cluster" && go_list_dir sigs.k8s.io/kind)/images/base/files
  cp -r --no-preserve=mode "$kind_files" "$work/kind-base"
  rm -rf "$work/kind-base/LICENSES" "$work/kind-base/kind/README.txt"
  cp "$bin/kubelet" "$bin/kubeadm" "$bin/kubectl" "$work/bin/"
  cp "$root/dev/node/"{load-images.sh,configure.sh,load-images.service,Dockerfile} "$work/"
  chmod 0755 "$work"/*.sh
  cp "$root/dev/node/storage.yaml" "$work/default-storage.yaml"
  cp "$root/dev/node/policies.yaml" "$work/default-cni.yaml"
  mapfile -t images < <("$bin/kubeadm" config images list --kubernetes-version "$kubernetes")
  printf '%s\n' "${images[@]}" | grep /pause: >"$work/pause"
  printf %s "$kubernetes" >"$work/version"
  echo "$key" >"$work/images.key"
  printf '{"bin": "%s", "proxy_root": "%s", "busybox": "%s"}' "$bin" "$parts/proxy.tar" "$parts/busybox" |
    python3 "$root/dev/node/archive.py" "$work/kubernetes.tar" "${images[@]}"
}

# Where a Go module lies; it is fetched if it is not there.
go_list_dir() {
  local go
  go=$(find_go)
  GOTOOLCHAIN=local GOFLAGS=-mod=mod "$go" mod download "$1" && GOFLAGS=-mod=mod "$go" list -m -f '{{.Dir}}' "$1"
}

build_node() {
  stage_context
  BUILDAH_ISOLATION=chroot buildah bud --layers=false --build-arg BASE="$base" -t "$image" "$work"
  rm -rf "$work"
  # Older node images are of no use once a newer one is complete; those in use stay until the next time.
  podman images --format '{{.Repository}}:{{.Tag}}' | grep -E '^localhost/espalier-node(-base)?:' | grep -vxF -e "$image" -e "$base" |
    xargs -r podman rmi >/dev/null 2>&1 || true
}

need_node() {
  need_base
  builds_images node-image
  podman image exists "$image" || step node-image "building the node image for Kubernetes $kubernetes" build_node
}

case ${1:-} in
base)
  need_base
  echo "$base"
  ;;
node)
  need_node
  echo "$image"
  ;;
name) echo "$image" ;;
*) die "usage: dev/node-image.sh base|node|name" ;;
esac
