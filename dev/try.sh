#!/usr/bin/env bash
# `make try`: a pretrained language model learns arithmetic by reinforcement on this machine, without Kubernetes. Its
# checkpoint tree and reward curve are drawn, it answers before and after, and an edit of a file rolls it back.
# TRY_STEPS=20 is the number of optimizer steps (at least 3, because the rollback goes to the second), and TRY_QUESTIONS=64 the
# number of held-out questions (at most 100, because the example leaves out no more).
# Everything lies in out/try ($ESPALIER_OUT/try), and each call starts anew; what was started is stopped in the end.
set -euo pipefail
. "$(dirname "$0")/common.sh"
cd "$root"
steps=${TRY_STEPS:-20}
[[ $steps =~ ^[0-9]+$ && $steps -ge 3 ]] || die "TRY_STEPS=$steps: give a number of at least 3."
held_out=${TRY_QUESTIONS:-64}
[[ $held_out =~ ^[1-9][0-9]?$|^100$ ]] || die "TRY_QUESTIONS=$held_out: give a number of 1 to 100."
out=${ESPALIER_OUT:-$root/out}/try
manifests=$out/manifests state=$out/state log=$out/dev.log
started=$SECONDS dev='' launched=''

title() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
# show COMMAND...: prints the command as a user would type it, then runs it.
show() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }

# Ends `espalier dev`, which ends what it has started; its exit code.
stop() {
  local process=$dev ends=$((SECONDS + 60))
  dev=
  [ -n "$process" ] || return 0
  kill -TERM "$process" 2>/dev/null || true
  while kill -0 "$process" 2>/dev/null; do
    [ $SECONDS -lt $ends ] || { say "espalier dev has not ended within 60 s: killing it"; kill -KILL "$process"; }
    sleep 0.1
  done
  wait "$process"
}

# Also after a failing step or Ctrl-C: stops everything, and says where to look.
finish() {
  local code=$?
  trap '' INT TERM
  stop || true
  if [ $code -ne 0 ] && [ -n "$launched" ]; then
    [ ! -s "$log" ] || { printf '\nThe last lines of %s:\n' "$log" && tail -n 12 "$log" | grep -v TOKEN || true; } >&2
    printf 'make try did not end well (%d). What it started is stopped; its files are in %s, logs in %s.\n' \
      "$code" "$out" "$state/logs" >&2
  fi
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# await SECONDS LINE: waits until `espalier dev` says it.
await() {
  local ends=$((SECONDS + $1))
  until grep -q "^$2" "$log"; do
    kill -0 "$dev" 2>/dev/null || die "espalier dev has ended"
    [ $SECONDS -lt $ends ] || die "espalier dev did not say '$2' within $1 s"
    sleep 0.1
  done
}

dev/preflight.sh try
title "Setting up (cached after the first time)"
dev/env.sh
dev/console.sh >/dev/null
model=$(images/model/context.sh)
PATH=$root/.venv/bin:$PATH
# The checkout's own code, whichever checkout the environment was last linked to.
export PYTHONPATH=$root/operator:$root PYTHONUNBUFFERED=1

title "Declare a fork of SmolLM2-135M-Instruct, its head, and $steps steps of reinforcement learning"
only_one try
if [ -e "$state/lock" ] && ! flock -n "$state/lock" true; then
  die "an espalier dev works in $state: stop it, or set ESPALIER_OUT to another directory."
fi
rm -rf "$manifests" "$state" "$log" "$out"/{reward.png,old.txt,rolled-back.txt}
mkdir -p "$manifests"
cp examples/arithmetic/{kustomization,storage,user,model,head,tasks,run}.yaml "$manifests"
# Half of the example's batch, so that two cores need minutes.
sed -i "s/^  steps: .*/  steps: $steps/; s/^  groupsPerStep: .*/  groupsPerStep: 4/; s/^      size: 64$/      size: $held_out/" \
  "$manifests/run.yaml"
show sed -n '/^kind/,/steps/p' "$manifests/run.yaml"
port=$(python -c 'from dev.ports import free_port; print(free_port())')
serve=(espalier dev "$manifests" --state "$state" --port "$port" --image "localhost:5000/espalier/model:1=$model")
printf '\033[2m$ %s &\033[0m\n' "${serve[*]}"
echo "The trainer and vLLM start, which takes about half a minute."
: >"$log"
"${serve[@]}" >"$log" 2>&1 &
dev=$! launched=yes
await 60 'export '
eval "$(grep -m 1 '^export ' "$log")"
await 240 'TrainingRun arith-20: Training'

title "Train it"
echo "Look at it meanwhile: $ESPALIER_GATEWAY_URL/console/ with the token $ESPALIER_TOKEN"
espalier watch arith-20 --timeout 1500

title "What the run left behind"
show espalier tree arith
show espalier curve arith --png "$out/reward.png"

questions=("What is 3 + 4? Answer with just the number." "What is 12 + 7? Answer with just the number."
  "What is 9 + 15? Answer with just the number." "What is 18 + 2? Answer with just the number." "What is 14 + 13? Answer with just the number.")
title "$held_out held-out questions, before and after"
show espalier evaluate arith-20 --seed 1001 --size "$held_out" --checkpoint base
show espalier evaluate arith-20 --seed 1001 --size "$held_out"

title "Five questions, before (slug@base)"
espalier ask arith --max-tokens 16 --checkpoint base "${questions[@]}"
title "Five questions, after (the slug)"
espalier ask arith --max-tokens 16 "${questions[@]}"

title "Roll back: edit the head's file"
espalier ask arith --max-tokens 16 --checkpoint arith-000002 "${questions[@]}" >"$out/old.txt"
show cp examples/arithmetic/rollback.yaml "$manifests/head.yaml"
edited=$(date +%s%N)
show sed -n '/^spec/,$p' "$manifests/head.yaml"
await 60 'CheckpointHead arith: Pinned: pinned to arith-000002'
printf 'served arith-000002 %d ms after the edit\n' $((($(date +%s%N) - edited) / 1000000))
espalier ask arith --max-tokens 16 "${questions[@]}" | tee "$out/rolled-back.txt"
cmp -s "$out/old.txt" "$out/rolled-back.txt" || die "the slug does not answer as arith-000002 did: compare $out/old.txt and $out/rolled-back.txt"
echo "The slug answers exactly as arith-000002 did."

title "Stop what was started"
stop || die "espalier dev ended with an error"
tail -n 1 "$log"
cat <<END

Done in $((SECONDS - started)) s. Everything lies in $out:
  manifests/   what was declared; edit it, and run the command again to go on where it stood:
               .venv/bin/${serve[*]}
  state/       checkpoints (volumes/), logs of every process (logs/), the objects
  reward.png   the reward curve

Read next:
  docs/guides/local.md        what espalier dev does, and the command line against it
  examples/cookbooks          six scripts of your own: losses, tools, self-play
  docs/guides/head.md         the head: pin, branch, gate
  make demo                   the same on a real Kubernetes cluster
END
