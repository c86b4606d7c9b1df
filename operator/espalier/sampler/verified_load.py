"""Has vLLM load an adapter from the very bytes that were hashed.

vLLM opens an adapter's files by name, and again whenever it takes up one that it had evicted, days
after a request resolved it; what it has opened it may read later still, for safetensors maps files.
Here each load first copies them to memory that has no name, and hashes what it copies.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from espalier.sampler.verified_store import ADAPTER_FILES, read_manifest, verify_file


@contextmanager
def verified_copy(directory: Path) -> Iterator[Path]:
    """A directory with the files of an adapter that vLLM reads, as they are when they are hashed.

    What was opened of it stays as it is after the block.

    Raises:
        StoreError: they are not those of the checkpoint of the directory's name.
    """
    manifest = read_manifest(directory, "checkpoint")
    with tempfile.TemporaryDirectory() as place, ExitStack() as copies:
        for name in ADAPTER_FILES:
            copy = copies.enter_context(os.fdopen(os.memfd_create(name), "wb"))
            verify_file(directory, name, manifest, into=copy)
            copy.flush()
            (Path(place) / name).symlink_to(f"/proc/self/fd/{copy.fileno()}")
        yield Path(place)


def install() -> None:
    """Has this process's workers load adapters so. Idempotent."""
    from vllm.lora.worker_manager import WorkerLoRAManager  # noqa: PLC0415

    if not hasattr(WorkerLoRAManager._load_adapter, "__wrapped__"):
        WorkerLoRAManager._load_adapter = _verifying(WorkerLoRAManager._load_adapter)


def _verifying(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def verified(manager: Any, request: Any) -> Any:
        import msgspec  # noqa: PLC0415 - of vLLM's requests

        with verified_copy(Path(request.lora_path)) as copy:
            return load(manager, msgspec.structs.replace(request, lora_path=str(copy)))

    return verified
