#!/usr/bin/env bash
# protobuf.sh: generates operator/espalier/tinker/messages_pb2.py(i) from messages.proto. The compiler lives in an
# environment of its own. Its version must not be above that of protobuf in constraints.txt: generated code refuses to
# load with an older library.
set -euo pipefail
. "$(dirname "$0")/common.sh"
compiler=grpcio-tools==1.85.1
venv=$cache/protobuf-$(echo "$compiler" | hash_of)
if [ ! -e "$venv/.complete" ]; then
  uv=$(uv)
  "$uv" venv -q --python "$root/.venv/bin/python" "$venv"
  "$uv" pip install -q --python "$venv/bin/python" "$compiler" >&2
  touch "$venv/.complete"
fi
cd "$root/operator"
"$venv/bin/python" -m grpc_tools.protoc -I. --python_out=. --pyi_out=. espalier/tinker/messages.proto
