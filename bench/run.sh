#!/usr/bin/env bash
# `make bench`: prints speed and size. Rollback is measured on what `make demo` left, so run that first.
# `make bench-trainer` (`bench/run.sh trainer`): the trainer's part alone, which needs no cluster.
# `make bench-gateway` (`bench/run.sh gateway`): the gateway, on an API server without nodes.
# `make bench-scoring` (`bench/run.sh scoring`): what scores answers, which needs no cluster.
# `make bench-operator` (`bench/run.sh operator`): the operator on an API server without nodes.
# `bench/run.sh console`: the console in a browser, which needs no cluster.
# `bench/run.sh runner`: the runner beside sampling and training, which needs no cluster.
# `make bench-loop`: whole runs beside TRL, and Asynchronous beside Synchronous, which needs no cluster.
# `make bench-tinker` (`bench/run.sh tinker`): what Tinker's client waits for, on an API server without nodes.
# `bench/run.sh tools`: what the parsers of tool calls and thoughts take.
# `bench/run.sh fuzzing`: 10,000 hostile requests to gateway, trainer and sampler, into docs/developing/fuzzing.md.
set -euo pipefail
. "$(dirname "$0")/../dev/common.sh"
cd "$root"

trainer() {
  echo "== gradients of the variants in float64 (goal: within 1e-12)"
  .venv/bin/python -m bench.trainer.compare --work tiny --float64
  echo "== a training step beside TRL's algorithms (goal: GRPOTrainer 1.9x at 32k, 1.6x at 152k; AsyncGRPO 1.4x)"
  .venv/bin/python -m bench.trainer.compare --work 32k 152k
  echo "== values and gradients of TRL's own losses"
  PYTHONPATH=operator:. "$(bench/trainer/trl_environment.sh)" -m bench.trainer.trl_own
  echo "== what a checkpoint's commit and the replay after a crash cost"
  .venv/bin/python -m bench.commit_cost
}
operator() {
  echo "== 10,000 Checkpoints of 20 models (goal: reconciled in 10 s, below 256 MiB, 1 ms of CPU a status write, flat per event)"
  .venv/bin/python -u -m bench.operator.scale
  echo "== head moves, spec edited to status.current, scripted rollouts (goal: p50 0.3 s, p99 1 s)"
  .venv/bin/python -m bench.operator.moves
  echo "== the operator's own part, in memory (goal: an event costs the same at 100 and 10,000)"
  .venv/bin/python -m bench.operator.passes
}
gateway() {
  export PYTHONPATH=operator:.
  echo "== what the gateway adds to a one-token request of vLLM (goal: at most 3 ms)"
  .venv/bin/python -m bench.gateway.pairs --pairs 300
  echo "== what it adds with 256 completions in flight (goal: p50 3 ms, p99 10 ms); 1,000 open streams (goal: 300 MiB)"
  .venv/bin/python -m bench.gateway.load
  .venv/bin/python -m bench.gateway.load --tls --streams 100
  echo "== a forward_backward of 64 trajectories of 2,000 tokens (goal: 50 ms outside the trainer)"
  .venv/bin/python -m bench.gateway.batch
  echo "== what one caller's flood costs another (goal: p99 within 1.5 times)"
  .venv/bin/python -m bench.gateway.fairness
  echo "== what a flood in a sampler's queue costs another caller (goal: p99 within 1.5 times)"
  .venv/bin/python -m bench.gateway.sampler_queue
  echo "== from a step to the first token of its weights on two replicas (goal: 1.2 adapter loads and 100 ms)"
  .venv/bin/python -m bench.gateway.promotion
}
console() {
  dev/console.sh test >/dev/null
  echo "== the console draws 1,000 checkpoints (goal: 200 ms), and its first paint (goal: 1 s)"
  PYTHONPATH=operator:. .venv/bin/python -m bench.console.draw
}
tinker() {
  export PYTHONPATH=operator:.
  echo "== a forward_backward of 64 datums of 2,000 tokens (goal: 60 ms beside computing)"
  .venv/bin/python -m bench.tinker.wire
  echo "== what the gateway adds to a sample (goal: 4 ms), and 200 futures in flight"
  .venv/bin/python -m bench.tinker.samples
  echo "== pipelined steps (goal: the trainer is idle for less than 5 % of the time)"
  .venv/bin/python -m bench.tinker.pipeline
}
scoring() {
  echo "== answers scored on one core (goal: 500 a second for chain_sum)"
  PYTHONPATH=operator:. .venv/bin/python -W ignore -m bench.scoring
}
runner() {
  echo "== what the runner itself costs (goal: 50 ms a step, 1 ms a rollout, 400 MiB for 1,000 in flight)"
  PYTHONPATH=operator:. .venv/bin/python -m bench.runner
}
# Three seeds take half an hour on two idle cores, which is why `make bench` leaves them out. A run that was stopped goes
# on with LOOP_SEEDS: the pieces of a seed are kept as they come.
loop() {
  local model out=${ESPALIER_OUT:-$root/out}/bench-loop
  model=$(images/model/context.sh)
  export PYTHONPATH=operator:.
  echo "== arithmetic beside TRL's GRPOTrainer, in turns (goal: 3 times faster to a held-out reward)"
  # shellcheck disable=SC2086  # one argument a seed
  .venv/bin/python -W ignore -m bench.loop.beside_trl "$model" "$out/trl" --seeds ${LOOP_SEEDS:-1 2 3}
  .venv/bin/python -W ignore -m bench.loop.held_out "$model" "$out/trl"
  .venv/bin/python -m bench.loop.report "$out/trl" --picture "$out/beside-trl.svg"
  echo "== long tails: Asynchronous beside Synchronous (goal: 1.4 times the rollouts a second)"
  .venv/bin/python -W ignore -m bench.loop.schedules "$model" "$out/schedules" \
    --rounds "${LOOP_ROUNDS:-3}" --steps "${LOOP_STEPS:-12}"
  .venv/bin/python -W ignore -m bench.loop.held_out "$model" "$out/schedules"
  .venv/bin/python -m bench.loop.report_schedules "$out/schedules"
}
tools() {
  echo "== CPU of the parsers of tool calls and thoughts, an answer"
  PYTHONPATH=operator:. .venv/bin/python -m bench.tool_parsers
}
fuzzing() {
  echo "== hostile requests to gateway, trainer and sampler (goal: no 500, no crash, no growth of memory, no state changed)"
  PYTHONPATH=operator:. .venv/bin/python -m bench.fuzzing --write
}
case "${1:-all}" in
trainer | operator | gateway | console | tinker | scoring | runner | loop | tools | fuzzing)
  "$1"
  exit
  ;;
esac

[ -f "$cache/images.env" ] || die "no images: run 'make images'."
. "$cache/images.env"
KUBECONFIG=$(dev/cluster.sh kubeconfig)
export KUBECONFIG PATH=$bin:$PATH
namespace=espalier-demo

echo "== machine: $(nproc) cores, load $(cut -d' ' -f1-3 /proc/loadavg), $(date -u +%F)"

echo "== size of the operator and gateway image, unpacked (goal: below 400 MB)"
STORAGE_DRIVER=overlay buildah images --format '{{.Size}}' "$ESPALIER_IMAGE_OPERATOR"

echo "== resident memory (goal: operator below 150 MiB)"
for pod in $(kubectl -n espalier-system get pods -o name); do
  kubectl -n espalier-system exec "$pod" -- sed -n 's/^VmRSS: *\(.*\) kB/\1/p' /proc/1/status |
    awk -v pod="$pod" '{printf "%s %.0f MiB\n", pod, $1 / 1024}'
done

echo "== warm rollback, from the edited spec to the first answer of the old weights (goal: within 1 s)"
if kubectl -n "$namespace" get checkpoint arith-000020 >/dev/null 2>&1; then
  log=$(mktemp)
  kubectl -n espalier-system port-forward service/espalier-gateway :80 >"$log" 2>&1 &
  forward=$!
  trap 'kill "$forward" 2>/dev/null; rm -f "$log"' EXIT
  for _ in $(seq 50); do grep -q 127.0.0.1 "$log" && break; sleep 0.2; done
  ESPALIER_GATEWAY_URL=http://$(grep -o '127.0.0.1:[0-9]*' "$log" | head -n 1)
  ESPALIER_TOKEN=$(kubectl -n "$namespace" create token arith-user --audience espalier-gateway --duration=1h)
  export ESPALIER_GATEWAY_URL ESPALIER_TOKEN
  .venv/bin/python bench/rollback.py --namespace "$namespace"
else
  echo "skipped: run 'make demo' first"
fi

echo "== espalier dev with the tiny model, until its run trains (goal: 30 s)"
PYTHONPATH=operator:. .venv/bin/python -m bench.start

gateway
tinker
operator
scoring
