#!/usr/bin/env bash
# Installs or upgrades Espalier from the chart, watching the given namespaces; makes those that are missing.
#   dev/install.sh NAMESPACE...
# Namespaces that it already watches stay watched, and other values of the release stay. Images are those of the latest
# `make images`.
set -euo pipefail
. "$(dirname "$0")/common.sh"
[ $# -gt 0 ] || die "usage: dev/install.sh NAMESPACE..."
[ -f "$cache/images.env" ] || die "no images: run 'make images'."
. "$cache/images.env"
KUBECONFIG=$("$root/dev/cluster.sh" kubeconfig)
export KUBECONFIG
system=espalier-system
for namespace in "$@"; do
  [ "$namespace" != "$system" ] || die "$system is where Espalier itself runs and its keys lie: name another namespace."
done

for namespace in "$@"; do
  "$bin/kubectl" create namespace "$namespace" --dry-run=client -o yaml |
    "$bin/kubectl" apply -f - >/dev/null
  # Everything that Espalier starts passes the restricted profile, so the namespace may demand it.
  "$bin/kubectl" label namespace "$namespace" pod-security.kubernetes.io/enforce=restricted --overwrite >/dev/null
done

watched=$("$bin/helm" -n "$system" get values espalier -o json 2>/dev/null |
  "$root/.venv/bin/python" -c 'import json, sys; print("\n".join((json.load(sys.stdin) or {}).get("namespaces", [])))' 2>/dev/null || true)
existing=$("$bin/kubectl" get namespaces -o name | cut -d/ -f2)
namespaces=$(printf '%s\n' "$@" $watched | sort -u | grep -Fxf <(echo "$existing") | paste -sd,)

"$bin/helm" upgrade --install espalier "$root/charts/espalier" --namespace "$system" --create-namespace \
  --reset-then-reuse-values --values "$root/charts/espalier/values-kind.yaml" --set "namespaces={$namespaces}" \
  --set "images.operator=$ESPALIER_IMAGE_OPERATOR" --set "images.trainer=$ESPALIER_IMAGE_TRAINER" \
  --set "images.rollout=$ESPALIER_IMAGE_ROLLOUT" --set "images.runner=$ESPALIER_IMAGE_RUNNER" \
  --wait --timeout 5m >/dev/null
say "Espalier is installed in $system and watches $namespaces"
