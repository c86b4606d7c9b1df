#!/usr/bin/env bash
# Gets the tools of the local cluster into $ESPALIER_CACHE/bin, each built once per version from dev/go/*.
#   dev/tools.sh apiserver   what the API-server-only lane runs: etcd, kube-apiserver, kube-controller-manager, kubectl
#   dev/tools.sh gitops      what the GitOps tests run: Argo CD core and Flux's kustomize-controller, with their CRDs
#   dev/tools.sh client      what a cluster in use needs: kubectl, helm
#   dev/tools.sh krew        kubectl and its plugin manager, which the tests install our plugin with
#   dev/tools.sh cluster     what a local cluster needs: with podman all of it and Debian packages, with Docker kind and the clients
set -euo pipefail
. "$(dirname "$0")/common.sh"

export GOTOOLCHAIN=local GOFLAGS="-mod=mod -buildvcs=false" CGO_ENABLED=0

# Without these the API server calls itself v0.0.0-master and version-skew checks of clients misread it.
kubernetes_ldflags() {
  local version minor package
  version=$(sed -n 's/^require k8s.io\/kubernetes \(v.*\)$/\1/p' "$root/dev/go/kubernetes/go.mod")
  minor=$(echo "$version" | cut -d. -f2)
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    printf -- '-X %s.gitVersion=%s -X %s.gitMajor=1 -X %s.gitMinor=%s -X %s.gitTreeState=clean -X %s.gitCommit=%040d -X %s.buildDate=1970-01-01T00:00:00Z ' \
      "$package" "$version" "$package" "$package" "$minor" "$package" "$package" 0 "$package"
  done
}

# build MODULE BINARY=PACKAGE...: binaries of one module under dev/go, keyed on what is there: go.mod, go.sum, any code.
build() {
  local module=$1 ldflags="-s -w" target name key go
  shift
  key=$(cd "$root" && hash_of dev/go/"$module"/* </dev/null)
  [ "$module" = kubernetes ] && ldflags="$ldflags $(kubernetes_ldflags)"
  for target in "$@"; do
    name=${target%%=*}
    [ -x "$bin/$name" ] && [ "$(cat "$bin/.$name.key" 2>/dev/null)" = "$key" ] && continue
    go=$(find_go)
    say "building $name (once per version)"
    (cd "$root/dev/go/$module" && nice -n 10 "$go" build -trimpath -ldflags "$ldflags" -o "$bin/.$name.new" "${target#*=}") >"$cache/build-$name.log" 2>&1 ||
      die "cannot build $name: see $cache/build-$name.log."
    mv "$bin/.$name.new" "$bin/$name"
    echo "$key" >"$bin/.$name.key"
    rm -f "$cache/build-$name.log"
  done
}

# take_manifests NAME MODULE[@VERSION] PATH...: copies files of a Go module, whose sum Go verifies, to $cache/gitops/NAME.
take_manifests() {
  local name=$1 module=$2 key directory version=${2#*@} go
  shift 2
  go=$(find_go)
  [ "$version" != "$module" ] || version=$(cd "$root/dev/go/$name" && "$go" list -m -f '{{.Version}}' "$module")
  module=${module%@*}
  key="$module@$version $*"
  [ "$(cat "$cache/gitops/$name/.key" 2>/dev/null)" = "$key" ] && return 0
  directory=$("$go" mod download -json "$module@$version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
  [ -n "$directory" ] || die "cannot download the Go module $module@$version."
  rm -rf "$cache/gitops/$name" && mkdir -p "$cache/gitops/$name"
  (cd "$directory" && cp -r --no-preserve=mode "$@" "$cache/gitops/$name/")
  echo "$key" >"$cache/gitops/$name/.key"
}

k8s=k8s.io/kubernetes/cmd
case ${1:-} in
apiserver)
  only_one tools
  build etcd etcd=go.etcd.io/etcd/server/v3
  build kubernetes kube-apiserver=$k8s/kube-apiserver kube-controller-manager=$k8s/kube-controller-manager kubectl=$k8s/kubectl
  ;;
gitops)
  only_one tools
  flux_source=$(sed -n 's|.*fluxcd/source-controller/api \(v[0-9.]*\).*|\1|p' "$root/dev/go/flux/go.mod")
  build argocd argocd=.
  build flux kustomize-controller=github.com/fluxcd/kustomize-controller
  take_manifests argocd github.com/argoproj/argo-cd/v3 manifests/crds/application-crd.yaml \
    manifests/crds/appproject-crd.yaml manifests/base/config
  take_manifests flux github.com/fluxcd/kustomize-controller config/crd/bases/kustomize.toolkit.fluxcd.io_kustomizations.yaml
  # The controller watches all three kinds of sources, and ends where one is missing.
  take_manifests flux-source "github.com/fluxcd/source-controller@$flux_source" \
    config/crd/bases/source.toolkit.fluxcd.io_{gitrepositories,ocirepositories,buckets}.yaml
  ;;
client)
  only_one tools
  build kubernetes kubectl=$k8s/kubectl
  build helm helm=helm.sh/helm/v3/cmd/helm
  ;;
krew)
  only_one tools
  build kubernetes kubectl=$k8s/kubectl
  build krew kubectl-krew=sigs.k8s.io/krew/cmd/krew
  ;;
cluster)
  . "$root/dev/engine.sh"
  only_one tools
  if [ "$engine" = podman ]; then
    need_root "a cluster without Docker"
    apt_ensure podman netavark aardvark-dns runc iptables buildah debootstrap openssl jq curl
    build etcd etcd=go.etcd.io/etcd/server/v3
    build kubernetes kube-apiserver=$k8s/kube-apiserver kube-controller-manager=$k8s/kube-controller-manager \
      kube-scheduler=$k8s/kube-scheduler kube-proxy=$k8s/kube-proxy kubelet=$k8s/kubelet kubeadm=$k8s/kubeadm
    build coredns coredns=github.com/coredns/coredns
    build local-path-provisioner local-path-provisioner=github.com/rancher/local-path-provisioner
  fi
  build kind kind=sigs.k8s.io/kind
  build kubernetes kubectl=$k8s/kubectl
  build helm helm=helm.sh/helm/v3/cmd/helm
  ;;
*) die "usage: dev/tools.sh apiserver|gitops|client|krew|cluster" ;;
esac
