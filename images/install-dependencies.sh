#!/bin/sh
# Runs in an image build: installs the image's requirements into /opt/venv.
# dev/image.sh mounts its directory at /run/dependencies: uv, the pinned list with its hashes, those of what builds
# packages from source, and the build host's index settings; nothing of that stays in the image.
set -eu
cd /run/dependencies
. ./environment
export UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_CACHE_DIR=/run/uv-cache
# What builds from source leaves locks behind, named after a path that is another each time.
TMPDIR=$(mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
./uv venv -q --python /usr/bin/python3 /opt/venv
# Compiled once here: the image is read-only where it runs, and vLLM's processes each import all of it. Files are dated
# anew when the image is made, so that compiled ones must not be compared with their source by date. Nothing of this
# build's directories stays in what a compiler makes.
export PYC_INVALIDATION_MODE=UNCHECKED_HASH PYTHONHASHSEED=0 CFLAGS=-g0
./uv pip install -q --python /opt/venv/bin/python --compile-bytecode --no-deps --require-hashes -r requirements.txt \
  --preview-features build-dependency-hashes --require-build-hashes --build-constraints installers.txt
