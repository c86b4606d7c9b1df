#!/usr/bin/env bash
# `make demo`: a pretrained language model learns arithmetic by reinforcement on a real cluster,
# its checkpoint tree is read with kubectl, and editing the head rolls the served model back.
set -euo pipefail
. "$(dirname "$0")/common.sh"
cd "$root"
namespace=espalier-demo
out=${ESPALIER_OUT:-$root/out}
mkdir -p "$out"
started=$SECONDS

title() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
# show COMMAND...: prints the command as a user would type it, then runs it.
show() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }

dev/preflight.sh demo
title "Setting up (cached after the first time)"
dev/setup.sh
. "$cache/images.env"
KUBECONFIG=$(dev/cluster.sh kubeconfig)
export KUBECONFIG
PATH=$bin:$root/.venv/bin:$PATH
kubectl() { command kubectl -n "$namespace" "$@"; }
espalier() { command espalier -n "$namespace" "$@"; }
command kubectl delete namespace "$namespace" --ignore-not-found --timeout=180s >/dev/null
step demo-install "installing Espalier from its chart" dev/install.sh "$namespace"

forward_log=$(mktemp)
command kubectl -n espalier-system port-forward service/espalier-gateway :80 >"$forward_log" 2>&1 &
forward=$!
trap 'kill "$forward" 2>/dev/null; rm -f "$forward_log"' EXIT

# await SECONDS KIND/NAME JSONPATH VALUE: waits for a field of a status; says what it waited for when it gives up.
await() {
  kubectl wait "$2" --for="jsonpath=$3=$4" --timeout="${1}s" >/dev/null || {
    kubectl get trainingruns,trainablemodels,checkpointheads,pods -o wide
    die "$2 did not reach $3 = $4 within $1 s"
  }
}

await_model() {
  kubectl wait trainablemodel/arith --for=condition=Ready --timeout=400s ||
    { kubectl get pods,trainablemodel/arith -o yaml; kubectl get pods,trainablemodel/arith -o wide; die "the model did not become Ready within 400 s"; }
}

title "Declare a fork of SmolLM2-135M-Instruct and its head"
show kubectl apply -f examples/arithmetic/storage.yaml -f examples/arithmetic/user.yaml -f examples/arithmetic/head.yaml
sed "s#localhost:5000/espalier/model:1#$ESPALIER_IMAGE_MODEL#" examples/arithmetic/model.yaml | kubectl apply -f -
step demo-model "waiting until the base is imported and served" await_model
show kubectl get trainablemodels

ESPALIER_TOKEN=$(kubectl create token arith-user --audience espalier-gateway --duration=2h)
until grep -q 127.0.0.1 "$forward_log"; do sleep 0.2; kill -0 "$forward" || die "kubectl port-forward ended: $(cat "$forward_log")"; done
ESPALIER_GATEWAY_URL=http://$(grep -o '127.0.0.1:[0-9]*' "$forward_log" | head -n 1)
export ESPALIER_TOKEN ESPALIER_GATEWAY_URL
questions=("What is 3 + 4? Answer with just the number." "What is 12 + 7? Answer with just the number."
  "What is 9 + 15? Answer with just the number." "What is 18 + 2? Answer with just the number." "What is 14 + 13? Answer with just the number.")

title "Train it: 20 steps of reinforcement learning"
show kubectl apply -f examples/arithmetic/tasks.yaml -f examples/arithmetic/run.yaml
espalier watch arith-20 --timeout 1500

title "What the run left behind"
show kubectl get checkpoints
show espalier tree arith
show espalier curve arith --png "$out/reward.png"
show kubectl get trainingruns,trainablemodels,checkpointheads

title "64 held-out questions, before and after"
espalier evaluate arith-20 --seed 1001 --size 64 --checkpoint base
espalier evaluate arith-20 --seed 1001 --size 64

title "Five questions, before (slug@base)"
espalier ask arith --checkpoint base "${questions[@]}"
title "Five questions, after (the slug)"
espalier ask arith "${questions[@]}"

title "Roll back: edit the head's spec"
show cat examples/arithmetic/rollback.yaml
espalier ask arith --checkpoint arith-000002 "${questions[@]}" >"$out/old.txt"
kubectl apply -f examples/arithmetic/rollback.yaml
edited=$(date +%s%N)
await 60 checkpointhead/arith '{.status.current.name}' arith-000002
printf 'served %s after %d ms\n' arith-000002 $((($(date +%s%N) - edited) / 1000000))
espalier ask arith "${questions[@]}" | tee "$out/rolled-back.txt"
cmp -s "$out/old.txt" "$out/rolled-back.txt" || die "the slug does not answer as arith-000002 did: compare $out/old.txt and $out/rolled-back.txt"
echo "The slug answers exactly as arith-000002 did."

title "Branch from there for two more steps"
show kubectl apply -f examples/arithmetic/branch.yaml
show kubectl patch trainingrun arith-20 --type merge -p '{"spec": {"steps": 22}}'
await 300 trainingrun/arith-20 '{.status.step}' 22
espalier watch arith-20 --timeout 300
show kubectl apply -f examples/arithmetic/head.yaml
show espalier tree arith
show kubectl get checkpoints
show kubectl get trainablemodel arith -o 'jsonpath={.status.tree.branches}'
echo
title "The operator owns nothing under spec"
kubectl get checkpointhead arith -o yaml --show-managed-fields | grep -E 'manager:|f:spec:|f:status:'
printf '\nDone in %d s. The reward curve is in %s. The cluster stays up; make cluster-down removes it.\n' $((SECONDS - started)) "$out/reward.png"
