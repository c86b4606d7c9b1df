#!/bin/sh
# On a node, once per boot and before the kubelet: fills containerd's store with the control plane's images.
# The store lies in a directory of the host and outlives the cluster, so that large images are pulled once;
# what an earlier cluster left in it, apart from images, must go before the kubelet looks.
set -eu
store=/var/lib/containerd
ctr() { /usr/bin/ctr -n k8s.io "$@"; }

# /var is new with every cluster, the store is not: this file tells a first boot from a later one.
if [ ! -e /var/lib/espalier-booted ]; then
  containers=$(ctr containers ls -q)
  if [ -n "$containers" ]; then
    # shellcheck disable=SC2086  # one argument per container
    ctr containers rm $containers
    systemctl restart containerd
  fi
  touch /var/lib/espalier-booted
fi

wanted=$(cat /kind/images.key)
[ "$(cat $store/espalier-images 2>/dev/null)" = "$wanted" ] && exit 0
ctr images import --all-platforms /kind/images/kubernetes.tar
echo "$wanted" >$store/espalier-images
