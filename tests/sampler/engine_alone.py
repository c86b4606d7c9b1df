"""vLLM's engine without our server, so that an adapter may change between any two loads of it.

``python -m tests.sampler.engine_alone VOLUME BASE A B C``: directories of three adapters. Prints as
JSON what A wrote before and after it was altered, and what became of it once it was evicted.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.sampler.server import baked_model_information

from espalier.sampler import flags
from espalier.sampler.cpu import quick_start
from espalier.sampler.settings import SamplerSettings

PROMPT = "the quick brown"


def overwrite(directory: Path) -> None:
    """Other weights of the same size, in the file that is there."""
    file = directory / "adapter_model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    with file.open("r+b") as opened:
        opened.seek(header)
        opened.write(bytes(file.stat().st_size - header))


def main(base: Path, adapters: list[Path]) -> dict[str, object]:
    quick_start.without_compiler()
    quick_start.inspect_here()
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(
        str(base),
        enable_lora=True,
        max_loras=1,
        max_cpu_loras=2,
        max_lora_rank=8,
        dtype="float32",
        max_model_len=64,
        enforce_eager=True,
        kv_cache_memory_bytes=1 << 26,
    )
    greedy = SamplingParams(temperature=0.0, max_tokens=16)

    def ask(index: int) -> list[int]:
        request = LoRARequest(f"adapter-{index}", index + 1, str(adapters[index]))
        (answer,) = llm.generate([PROMPT], greedy, lora_request=request, use_tqdm=False)
        return [*answer.outputs[0].token_ids]

    before = ask(0)
    ask(1)
    overwrite(adapters[0])
    # Loaded still, and copied to where it is computed with from what vLLM keeps of it.
    kept = ask(0)
    others = [ask(1), ask(2)]
    try:
        evicted: object = ask(0)
    except Exception as error:
        evicted = f"{type(error).__name__}: {error}"
    return {"before": before, "kept": kept, "others": others, "evicted": evicted}


if __name__ == "__main__":
    volume, base, *names = sys.argv[1:]
    told = {
        "ESPALIER_MODEL": "tiny",
        "ESPALIER_NAMESPACE": "default",
        "ESPALIER_POD_UID": "uid-1",
        "ESPALIER_VOLUME": volume,
        "ESPALIER_BASE": base,
        "ESPALIER_DTYPE": "float32",
        "ESPALIER_MAX_MODEL_TOKENS": "64",
        "ESPALIER_MAX_ADAPTERS": "1",
        "ESPALIER_MAX_LORA_RANK": "8",
    }
    os.environ.update(told)
    place = SamplerSettings.read(os.environ).base_directory
    # Before HOME is another one.
    baked = baked_model_information()
    os.environ.update(flags.environment(Path(os.environ["TMPDIR"]), 1))
    os.environ["VLLM_CACHE_ROOT"] = str(baked)
    os.environ.pop("VLLM_LOGGING_CONFIG_PATH")
    print("FOUND " + json.dumps(main(place, [Path(name) for name in names])))
