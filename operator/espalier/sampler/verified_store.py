"""Reads the model's volume: finds bases and adapters and verifies them.

Layout and digests: docs/developing/architecture.md, "The volume". No place is trusted: the manifest
must hash to the directory's name, and each file that vLLM reads to its manifest entry.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.core import names
from espalier.core.volume import (
    DIGEST_PREFIX,
    FOLDERS,
    digest_named,
    directory_name,
    is_digest,
    unlisted,
)
from espalier.sampler.verified_files import (
    StoreError,
    noted_before,
    read_manifest,
    refuse_strange,
    verify_file,
)
from espalier.unchanged import Noted

ADAPTER_NAME = re.compile(
    r"(?P<slug>[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?)"
    rf"@(?P<prefix>[0-9a-f]{{{names.ADAPTER_DIGEST_CHARS}}})"
)
# Files hashed at the same time: one takes a core, and a volume seldom feeds more.
HASHED_AT_ONCE = 4
# The files of a checkpoint that vLLM reads; the optimizer's state is never opened here.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class VerifiedAdapter:
    """A verified adapter: its immutable name, full digest, directory and LoRA rank."""

    name: str
    digest: str
    directory: Path
    rank: int


class VerifiedCheckpoints:
    """The checkpoints of one base on one volume, of its own model and of others.

    A model's trainer writes into the folder of its name, so of another model's checkpoint only what
    lies in that model's folder counts. Versions before had one folder for all.
    """

    def __init__(self, volume: Path, base: str) -> None:
        self._checkpoints = volume / FOLDERS["checkpoint"]
        self._base = base

    def open(self, name: str) -> tuple[Path, dict[str, Any]]:
        """Directory and manifest of ``<slug>@<12 hex digits>``; raises StoreError.

        The manifest is verified, and no other file is.
        """
        match = ADAPTER_NAME.fullmatch(name)
        if not match:
            raise StoreError(
                "InvalidAdapterName",
                f"{name!r} is not an adapter name",
                "use base, or <slug>@<first 12 hex digits of the checkpoint's digest>",
            )
        directory = self._directory(name, match["slug"], match["prefix"])
        manifest = read_manifest(directory, "checkpoint")
        if manifest.get("base") != self._base:
            raise StoreError(
                "WrongBase",
                f"{name} was trained on {manifest.get('base')}, this server serves {self._base}",
                "ask a rollout of the model that the checkpoint belongs to",
            )
        return directory, manifest

    def _directory(self, name: str, slug: str, prefix: str) -> Path:
        start = directory_name(DIGEST_PREFIX + prefix)
        # List directories instead of joining paths: a name can only select a checkpoint.
        there = _entries(self._checkpoints)
        folders = [entry for entry in there if not is_digest(digest_named(entry.name))]
        own = [folder for folder in folders if folder.name == slug]
        found = _beginning(start, *own) or [
            *filter(_is_at_home, _beginning(start, *folders)),
            *(entry for entry in there if entry.name.startswith(start)),
        ]
        # The same one may lie in two of these places.
        found = [*{entry.name: entry for entry in found}.values()]
        if not found:
            raise StoreError(
                "AdapterNotFound",
                f"{name} is not on the volume",
                "check the digest; the checkpoint may have been deleted",
            )
        if len(found) > 1:
            raise StoreError(
                "AmbiguousAdapter",
                f"{len(found)} checkpoints on the volume begin with {prefix}",
                "delete all but one of these checkpoints",
            )
        return found[0]


def _entries(folder: Path) -> list[Path]:
    return [*folder.iterdir()] if folder.is_dir() else []


def _beginning(start: str, *folders: Path) -> list[Path]:
    """The entries of these folders whose names begin with ``start``."""
    entries = [entry for folder in folders for entry in _entries(folder)]
    return [entry for entry in entries if entry.name.startswith(start)]


def _is_at_home(directory: Path) -> bool:
    """Whether a checkpoint lies in the folder of its model."""
    try:
        manifest = read_manifest(directory, "checkpoint")
    except StoreError:
        return False
    return bool(manifest.get("model") == directory.parent.name)


class AdapterStore(VerifiedCheckpoints):
    """Adapters of one base on one volume, up to one LoRA rank."""

    def __init__(self, volume: Path, base: str, max_rank: int) -> None:
        super().__init__(volume, base)
        self._max_rank = max_rank

    def resolve(self, name: str) -> VerifiedAdapter:
        """The verified adapter called ``<slug>@<12 hex digits>``; raises StoreError.

        Reads and hashes the adapter's files, so call it from a thread.
        """
        directory, manifest = self.open(name)
        rank = self._rank(name, directory, manifest)
        return VerifiedAdapter(name, digest_named(directory.name), directory, rank)

    def _rank(self, name: str, directory: Path, manifest: dict[str, Any]) -> int:
        for file in ADAPTER_FILES:
            verify_file(directory, file, manifest)
        config = json.loads((directory / "adapter_config.json").read_bytes())
        rank = config.get("r")
        if config.get("peft_type") != "LORA" or not isinstance(rank, int):
            raise StoreError(
                "NotLoRA",
                f"adapter_config.json of {name} describes no LoRA adapter",
                "commit adapters in PEFT's LoRA layout",
            )
        if rank > self._max_rank:
            raise StoreError(
                "RankTooHigh",
                f"{name} has rank {rank}, this server takes ranks up to {self._max_rank}",
                "raise spec.adapter.rank of the model that serves it",
            )
        return rank


def verify_base(directory: Path) -> Noted:
    """Raise StoreError unless the base is committed, and every byte of it what its digest says.

    Hashing reads what loading reads right after, from the page cache then. Files that the manifest
    does not list are refused, because vLLM reads what it finds.

    Returns:
        What it was noted as before it was hashed: who has loaded it looks again.
    """
    if not directory.is_dir():
        raise StoreError(
            "BaseNotFound",
            f"{directory.name} is not on the volume",
            "wait for the import of the base, or mount the volume that holds it",
        )
    noted = noted_before(directory)
    manifest = read_manifest(directory, "base")
    files = manifest.get("files", {})
    for name, entry in files.items():
        file = directory / name
        if not file.is_file() or file.stat().st_size != entry["size"]:
            raise StoreError(
                "BaseIncomplete",
                f"{name} of {directory.name} is missing or not {entry['size']} bytes long",
                "delete the directory and import the base again",
            )
    if others := unlisted(noted.files, files):
        raise StoreError(
            "FileNotListed",
            f"{directory.name} holds {others[0]}, which its manifest does not list",
            "find out who wrote it, and delete it",
        )
    with ThreadPoolExecutor(HASHED_AT_ONCE) as threads:
        for _ in threads.map(lambda name: verify_file(directory, name, manifest), files):
            pass
    refuse_strange(noted)
    return noted
