#!/usr/bin/env bash
# Sets up what the tests need and runs them all: `make test`. Arguments go to pytest.
# The cluster stays up afterwards, so that the next time is quick; `make cluster-down` removes it.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
dev/env.sh
make --no-print-directory lint
dev/tools.sh gitops
dev/cluster.sh up
dev/image.sh all
exec .venv/bin/python -m pytest "$@"
