"""vLLM's workers load adapters from memory that holds what was hashed, and from no volume.

vLLM reads an adapter when it is first asked for, and again once it was evicted, long after our
store has hashed it. It maps the file as well, so what is written to it later would be served. So
each load copies the files into memory of the worker's own, hashes what it copies, and reads that.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from vllm.lora.worker_manager import WorkerLoRAManager

from espalier.sampler.verified_files import StoreError, copy_verified, read_manifest
from espalier.sampler.verified_store import ADAPTER_FILES

# MFD_NOEXEC_SEAL, which Python does not name: some kernels give no other memory.
_NEVER_RUN = 0x8
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK


class AlteredAdapterError(Exception):
    """What lies on the volume is not the adapter that was asked for; nothing of it was loaded."""


def install() -> None:
    """Replace how vLLM's workers load an adapter; called again it changes nothing.

    In a load that a step needs, AlteredAdapterError ends vLLM's engine: a sampler that is started
    again knows only what it has verified, and other weights are not served in between.
    """
    load = WorkerLoRAManager._load_adapter
    if getattr(load, "verifies", False):
        return

    def verifying(self: Any, lora_request: Any) -> Any:
        try:
            with copied(Path(lora_request.lora_path)) as copy:
                read = msgspec.structs.replace(lora_request, lora_path=str(copy))
                return load(self, read)
        except StoreError as error:
            problem = error.problem
            raise AlteredAdapterError(f"{problem.detail} ({problem.reason})") from error

    verifying.verifies = True  # type: ignore[attr-defined]
    WorkerLoRAManager._load_adapter = verifying


@contextmanager
def copied(directory: Path) -> Iterator[Path]:
    """A directory with an adapter's files as its digest has them, in memory.

    Tensors that are read from it may outlive it. Takes as much memory as the files are large.

    Args:
        directory: of a checkpoint, named after its digest.

    Raises:
        StoreError: its bytes are not those of the digest.
    """
    manifest = read_manifest(directory, "checkpoint")
    with ExitStack() as held, TemporaryDirectory(prefix="adapter-") as place:
        for name in ADAPTER_FILES:
            memory = held.enter_context(os.fdopen(_memory(name), "w+b"))
            copy_verified(directory, name, manifest, memory)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
            (Path(place) / name).symlink_to(f"/proc/self/fd/{memory.fileno()}")
        yield Path(place)


def _memory(name: str) -> int:
    """A descriptor of memory that is written like a file, and can be sealed."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _NEVER_RUN)
    except OSError as error:
        # Linux before 6.3 does not know it.
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, flags)
