"""``python -m espalier.sampler.bake ARCHITECTURE...``: for the build of the rollout image.

Writes the facts about the models' classes that vLLM would otherwise find out at every start, in
a process of its own for 8 s. They go to ``$VLLM_CACHE_ROOT/modelinfos``; leave the variable set in
the image, and the launcher takes the files from there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(architectures: list[str]) -> None:
    """Inspect each architecture (``LlamaForCausalLM``, …) once."""
    root = os.environ.get("VLLM_CACHE_ROOT")
    if not root:
        raise SystemExit("set VLLM_CACHE_ROOT to the directory of the image that takes the files")
    if not architectures:
        raise SystemExit("name the architectures, as in config.json: LlamaForCausalLM …")
    from vllm.model_executor.models.registry import ModelRegistry  # noqa: PLC0415

    for architecture in architectures:
        if architecture not in ModelRegistry.models:
            raise SystemExit(f"vLLM has no architecture {architecture!r}")
        ModelRegistry.models[architecture].inspect_model_cls()
    written = len(list((Path(root) / "modelinfos").glob("*.json")))
    if written < len(architectures):
        raise SystemExit(f"{written} of {len(architectures)} files were written to {root}")


if __name__ == "__main__":
    main(sys.argv[1:])
