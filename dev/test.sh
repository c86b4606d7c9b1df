#!/usr/bin/env bash
# Sets up what the tests need and runs them in three workers (tests/dealing.py). Arguments go to pytest: `make test` gives it
# -m "not exhaustive and not packages", `make test-all` nothing. What each test took is in out/junit.xml, by folder in out/tests.md.
# The cluster stays up afterwards, so that the next time is quick; `make cluster-down` removes it.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
dev/preflight.sh test
dev/setup.sh gitops monitoring
# Minutes to build, for exhaustive tests alone.
[[ "$*" == *"not exhaustive"* ]] || dev/tools.sh kueue
make --no-print-directory lint
# Where it is set, each of a thousand processes compiles whatever it imports.
unset PYTHONDONTWRITEBYTECODE
mkdir -p out
status=0
# In the order of tests/dealing.py, not the groups of most tests first.
.venv/bin/python -m pytest -n 3 --no-loadscope-reorder \
  --junitxml=out/junit.xml --durations=30 --durations-min=1 "$@" || status=$?
.venv/bin/python -m dev.test_table >out/tests.md
exit "$status"
