#!/usr/bin/env bash
# Sets up what the tests need and runs them all: `make test`. Arguments go to pytest.
# The cluster stays up afterwards, so that the next time is quick; `make cluster-down` removes it.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
dev/preflight.sh test
dev/setup.sh gitops
make --no-print-directory lint
exec .venv/bin/python -m pytest "$@"
