#!/usr/bin/env bash
# setup.sh [gitops] [monitoring]: the environment, the cluster and its images, and what these tests run. What does not
# wait for each other goes on side by side; dev/setup.mk says what waits for what. A second call takes seconds.
set -euo pipefail
. "$(dirname "$0")/common.sh"
cd "$root"
. dev/engine.sh
[ "$engine" = docker ] || [ "${CLUSTER:-}" = current ] || apt_ensure podman netavark aardvark-dns runc iptables buildah debootstrap openssl jq curl
started=$SECONDS
# A make of its own: the caller's may have been told to do one thing at a time.
env -u MAKEFLAGS -u MAKELEVEL make --no-print-directory -f dev/setup.mk -j3 cluster images "$@"
say "everything is set up after $((SECONDS - started)) s"
