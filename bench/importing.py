"""How fast a base is imported, beside what the disk gives: MB/s of a synthetic base.

python -m bench.importing DIRECTORY [GIGABYTES]
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from dev.tiny_model import tokenizer
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from espalier.trainer.jobs.base_check import inspect
from espalier.trainer.jobs.importer import copy_directory
from espalier.trainer.jobs.place import place_base
from espalier.trainer.volume.base_files import Wanted
from espalier.trainer.volume.checkpoint_store import CheckpointStore, sha256_of

MB = 1e6


def write(directory: Path, gigabytes: float) -> int:
    """A Llama of about that size in one file, every tensor random; its bytes."""
    width = 2048
    layer = 2 * (4 * width * width + 3 * width * 4 * width)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=max(1, round(gigabytes * 1e9 / layer)),
        num_attention_heads=16,
        vocab_size=1024,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in LlamaForCausalLM(config).state_dict().items()}
    del shapes["lm_head.weight"]
    state = {n: torch.randn(s, dtype=torch.bfloat16) for n, s in shapes.items()}
    config.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return (directory / "model.safetensors").stat().st_size


def copied(source: Path, target: Path) -> None:
    """A plain copy that is on disk when it ends."""
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def imported(volume: Path, source: Path) -> None:
    """What importer and place do, one after the other."""
    store = CheckpointStore(volume, "importer")
    with store.staging("base") as staged:
        copy_directory(staged, source)
        place_base(store, staged)


def measured(name: str, size: int, act: Callable[[], object]) -> None:
    """Prints wall time and CPU time of an act, and its rate."""
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name}: {wall:.1f} s, {cpu:.1f} s of CPU, {size / wall / MB:.0f} MB/s", flush=True)


def main() -> None:
    """Plain copy, hash, check and import of the same bytes."""
    root = Path(sys.argv[1]) / "importing"
    source = root / "source"
    source.mkdir(parents=True)
    try:
        size = write(source, float(sys.argv[2]) if len(sys.argv) > 2 else 4.0)
        weights = source / "model.safetensors"
        print(f"{size / 1e9:.1f} GB", flush=True)
        measured("plain copy, on disk", size, lambda: copied(weights, root / "copy"))
        (root / "copy").unlink()
        measured("SHA-256 alone", size, lambda: sha256_of(weights))
        measured("check alone", size, lambda: inspect(source, Wanted()))
        measured("copy, SHA-256, on disk", size, lambda: imported(root / "volume", source))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
