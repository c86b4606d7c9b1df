#!/usr/bin/env bash
# Gets the tools of the local cluster and of the tests into $ESPALIER_CACHE/bin, each built once per version from dev/go/*.
#   dev/tools.sh TOOL...     by name, or as a group:
#     nodes      what runs on the nodes of a cluster without Docker
#     clients    kubectl and helm
#     apiserver  what the API-server-only tests run: etcd, kube-apiserver, kube-controller-manager, kubectl
#     gitops     what the GitOps tests run: Argo CD core and Flux's kustomize-controller, with their CRDs
#     krew       kubectl and its plugin manager, which the tests install our plugin with
#     monitoring Prometheus and promtool, which the tests of metrics, alerts and dashboards run
#     kueue      Kueue, with its CRDs and webhooks, which the exhaustive tests of queues run
set -euo pipefail
. "$(dirname "$0")/common.sh"

# Static, for the images; without debug data that nobody reads here.
export GOTOOLCHAIN=local GOFLAGS="-mod=mod -buildvcs=false" CGO_ENABLED=0

k8s=k8s.io/kubernetes/cmd
# TOOL=MODULE PACKAGE: the module is a directory of dev/go.
declare -A source=(
  [kube-apiserver]="cluster $k8s/kube-apiserver"
  [kube-controller-manager]="cluster $k8s/kube-controller-manager"
  [kube-scheduler]="cluster $k8s/kube-scheduler"
  [kube-proxy]="cluster $k8s/kube-proxy"
  [kubelet]="cluster $k8s/kubelet"
  [kubeadm]="cluster $k8s/kubeadm"
  [kubectl]="cluster $k8s/kubectl"
  [etcd]="cluster go.etcd.io/etcd/server/v3"
  [coredns]="cluster github.com/coredns/coredns"
  [local-path-provisioner]="cluster github.com/rancher/local-path-provisioner"
  [kube-network-policies]="policies sigs.k8s.io/kube-network-policies/cmd"
  [kind]="cluster sigs.k8s.io/kind"
  [helm]="cluster helm.sh/helm/v3/cmd/helm"
  [kubectl-krew]="cluster sigs.k8s.io/krew/cmd/krew"
  [argocd]="argocd espalier.dev/dev/go/argocd"
  [actionlint]="workflows github.com/rhysd/actionlint/cmd/actionlint"
  [kustomize-controller]="flux github.com/fluxcd/kustomize-controller"
  [kueue]="kueue sigs.k8s.io/kueue/cmd/kueue"
  [prometheus]="prometheus github.com/prometheus/prometheus/cmd/prometheus"
  [promtool]="prometheus github.com/prometheus/prometheus/cmd/promtool"
)
# It spells the name of a module in other letters than Kubernetes does, and one `go build` refuses both.
apart=local-path-provisioner
declare -A group=(
  [nodes]="etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubeadm kubectl coredns local-path-provisioner kube-network-policies"
  [clients]="kubectl helm"
  [apiserver]="etcd kube-apiserver kube-controller-manager kubectl"
  [gitops]="argocd kustomize-controller"
  [krew]="kubectl kubectl-krew"
  [monitoring]="prometheus promtool"
)

# Without these the API server calls itself v0.0.0-master and version-skew checks of clients misread it.
kubernetes_ldflags() {
  local version minor package
  version=$(kubernetes_version)
  minor=$(echo "$version" | cut -d. -f2)
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    printf -- '-X %s.gitVersion=%s -X %s.gitMajor=1 -X %s.gitMinor=%s -X %s.gitTreeState=clean -X %s.gitCommit=%040d -X %s.buildDate=1970-01-01T00:00:00Z ' \
      "$package" "$version" "$package" "$package" "$minor" "$package" "$package" 0 "$package"
  done
}

# What a module's binaries are keyed on: all that is in its directory, and how they are built.
key_of() { hash_of dev/go/"$1"/* <<<"$(declare -f compile kubernetes_ldflags)"; }
is_built() { [ -x "$bin/$1" ] && [ "$(cat "$bin/.$1.key" 2>/dev/null)" = "$2" ]; }

# compile MODULE TOOL...: in one `go build`, which compiles what they share once and links them side by side.
compile() {
  local module=$1 ldflags="-s -w" packages=() tool key go output=$bin/.new-$1
  shift
  key=$(cd "$root" && key_of "$module")
  [ "$module" != cluster ] || ldflags="$ldflags $(kubernetes_ldflags)"
  for tool in "$@"; do packages+=("${source[$tool]#* }"); done
  go=$(find_go)
  rm -rf "$output" && mkdir "$output"
  cd "$root/dev/go/$module"
  "$go" build -v -trimpath -gcflags=all=-dwarf=false -ldflags "$ldflags" -o "$output/" "${packages[@]}"
  for tool in "$@"; do
    mv "$output/$(name_of "${source[$tool]#* }")" "$bin/$tool"
    echo "$key" >"$bin/.$tool.key"
  done
  rm -rf "$output"
}

# What `go build` calls the binary of a package: the last part of its path that is no version.
name_of() { basename "$(echo "$1" | sed -E 's#/v[0-9]+$##')"; }

build() {
  local module=$1 missing=() alone='' tool key GOFLAGS=$GOFLAGS
  shift
  # Part of the key, as all that is in a module's directory.
  [ ! -e "$root/dev/go/$module/tags" ] || GOFLAGS="$GOFLAGS -tags=$(cat "$root/dev/go/$module/tags")"
  exec {module_fd}>"$cache/go-$module.lock"
  flock -w 3600 "$module_fd" || die "another build of dev/go/$module has not ended within an hour."
  key=$(cd "$root" && key_of "$module")
  for tool in "$@"; do
    if is_built "$tool" "$key"; then continue; fi
    if [ "$tool" = "$apart" ]; then alone=$tool; else missing+=("$tool"); fi
  done
  [ ${#missing[@]} -eq 0 ] || step "go-$module" "building ${missing[*]} (once per version)" compile "$module" "${missing[@]}"
  [ -z "$alone" ] || step "go-$alone" "building $alone (once per version)" compile "$module" "$alone"
  exec {module_fd}>&-
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

take_gitops_manifests() {
  local flux_source
  flux_source=$(sed -n 's|.*fluxcd/source-controller/api \(v[0-9.]*\).*|\1|p' "$root/dev/go/flux/go.mod")
  take_manifests argocd github.com/argoproj/argo-cd/v3 manifests/crds/application-crd.yaml \
    manifests/crds/appproject-crd.yaml manifests/base/config
  take_manifests flux github.com/fluxcd/kustomize-controller config/crd/bases/kustomize.toolkit.fluxcd.io_kustomizations.yaml
  # The controller watches all three kinds of sources, and ends where one is missing.
  take_manifests flux-source "github.com/fluxcd/source-controller@$flux_source" \
    config/crd/bases/source.toolkit.fluxcd.io_{gitrepositories,ocirepositories,buckets}.yaml
}

[ $# -gt 0 ] || die "usage: dev/tools.sh TOOL...; tools: ${!source[*]}; groups: ${!group[*]}"
declare -A wanted
for name in "$@"; do
  for tool in ${group[$name]:-$name}; do
    [ -n "${source[$tool]:-}" ] || die "there is no tool $tool; tools: ${!source[*]}; groups: ${!group[*]}"
    module=${source[$tool]%% *}
    [[ " ${wanted[$module]:-} " == *" $tool "* ]] || wanted[$module]="${wanted[$module]:-} $tool"
  done
done
# shellcheck disable=SC2086  # a list of tools
for module in "${!wanted[@]}"; do build "$module" ${wanted[$module]}; done
for name in "$@"; do
  case $name in
    gitops) take_gitops_manifests ;;
    kueue) take_manifests kueue sigs.k8s.io/kueue config/components/crd/bases config/components/webhook/manifests.yaml ;;
  esac
done
