#!/usr/bin/env bash
# Runs what needs an NVIDIA GPU: the tests marked gpu, then a step of Qwen3-4B's shape beside TRL's algorithms, with its profile.
# Writes bench/results/<date>-gpu.md with hardware and versions. Needs no network, no cluster and no vLLM.
#   PYTHON=...   a Python with torch 2.11 or later; otherwise .venv's, or the first python3 on the PATH
set -euo pipefail
. "$(dirname "$0")/common.sh"
cd "$root"

python=${PYTHON:-}
[ -n "$python" ] || { [ -x .venv/bin/python ] && python=.venv/bin/python; } || python=python3
export PYTHONPATH=$root/operator:$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
"$python" -m bench.trainer.hardware check || exit 1

report=bench/results/$(date +%F)-gpu.md
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
"$python" -m pytest -m gpu -p no:cacheprovider tests/trainer/test_gpu.py 2>&1 | tee "$work/tests" || status=$?
"$python" -m bench.trainer.compare --work qwen3-4b --device cuda --profile --repeats 3 \
  --variants ours ours-gc grpo-gc async async-gc 2>&1 | tee "$work/step" || status=$?
"$python" -m bench.trainer.hardware report "$work/tests" "$work/step" >"$report"
say "written: $report"
exit "$status"
