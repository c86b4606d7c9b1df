#!/usr/bin/env bash
# cookbook.sh NAME NAMESPACE: a cookbook as a Job of the local cluster (examples/cookbook-jobs/NAME), with the images that
# `make images` built; prints its log and ends as it does. The namespace is one that Espalier watches: dev/install.sh.
set -euo pipefail
. "$(dirname "$0")/common.sh"
[ $# = 2 ] || die "usage: dev/cookbook.sh NAME NAMESPACE"
name=$1 namespace=$2
directory=$root/examples/cookbook-jobs/$name
[ -d "$directory" ] || die "there is no cookbook $name; there are: $(ls "$root/examples/cookbook-jobs" | paste -sd' ')."
[ -f "$cache/images.env" ] || die "no images: run 'make images'."
. "$cache/images.env"
KUBECONFIG=$("$root/dev/cluster.sh" kubeconfig)
export KUBECONFIG PATH=$bin:$PATH
kubectl() { command kubectl -n "$namespace" "$@"; }
job=job/cookbook-${name//_/-}

command kubectl kustomize "$directory" |
  sed "s|localhost:5000/espalier/trainer:1|$ESPALIER_IMAGE_TRAINER|; s|localhost:5000/espalier/cookbook-model:1|$ESPALIER_IMAGE_COOKBOOK_MODEL|" |
  kubectl apply -f - >&2
kubectl wait "$job" --for=jsonpath='{.status.ready}'=1 --timeout=300s >&2 || die "$job has no running pod: see 'kubectl -n $namespace describe $job'."
kubectl logs -f "$job"
# Either end is waited for; which it was, the log and this say.
for _ in $(seq 60); do
  case $(kubectl get "$job" -o jsonpath='{.status.conditions[?(@.status=="True")].type}') in
  *Complete*) exit 0 ;;
  *Failed*) die "$job failed" ;;
  esac
  sleep 1
done
die "$job has not ended a minute after its log did"
