#!/usr/bin/env bash
# An environment with TRL's own code, beside the project's and never in it. Prints the path of its Python.
# torch, transformers and peft are the project's own, so that both sides of a comparison run the same kernels.
set -euo pipefail
. "$(dirname "$0")/../../dev/common.sh"
trl=1.16.0
main=$(cd "$root" && .venv/bin/python -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])')
key=$(echo "$trl $main" | sha256sum | cut -c1-12)
venv=$cache/trl-$key
if [ ! -e "$venv/.complete" ]; then
  rm -rf "$venv"
  uv=$(uv)
  "$uv" venv -q --python "$root/.venv/bin/python" "$venv"
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  echo "$main" > "$site/project.pth"
  # What TRL needs and the project lacks; the rest is seen through the .pth file.
  "$uv" pip install -q --python "$venv/bin/python" --no-deps \
    "trl==$trl" datasets dill multiprocess xxhash pyarrow pandas python-dateutil pytz tzdata six accelerate psutil
  "$venv/bin/python" -c 'import trl, torch; from trl import GRPOTrainer' >&2
  touch "$venv/.complete"
fi
echo "$venv/bin/python"
