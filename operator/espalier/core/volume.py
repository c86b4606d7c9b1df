"""The layout of a model's volume, and the digests that name what lies on it.

``bases/sha256-<hex>/`` and ``checkpoints/<model>/sha256-<hex>/`` hold files and a
``manifest.json``, which lists their sizes and SHA-256. The digest of such a directory is the
SHA-256 of its manifest's canonical JSON, so it covers every file and the metadata. Checkpoints of
versions before lie in ``checkpoints/`` itself. ``bases/.imports/<model>/`` is what an import has
brought so far. Pure: nothing here opens a file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

Kind = Literal["base", "checkpoint"]
FOLDERS: dict[Kind, str] = {"base": "bases", "checkpoint": "checkpoints"}
MANIFEST = "manifest.json"
DIGEST_PREFIX = "sha256:"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Whether a text is ``sha256:`` and 64 hexadecimal digits in lower case."""
    return _DIGEST.fullmatch(text) is not None


def base_directory(root: Path, digest: str) -> Path:
    """Where the base of a digest lies on the volume mounted at ``root``."""
    return root / FOLDERS["base"] / directory_name(digest)


def imports_of(root: Path, model: str) -> Path:
    """The folder that a model's importer writes, and no other part of the volume.

    It lies among the bases: a rename is possible only inside of one mount.
    """
    return root / FOLDERS["base"] / ".imports" / model


def checkpoints_of(root: Path, model: str) -> Path:
    """The folder of a model's checkpoints on the volume mounted at ``root``."""
    return root / FOLDERS["checkpoint"] / model


def log_of(root: Path, model: str) -> Path:
    """The folder of a model's command log and traces on the volume mounted at ``root``."""
    return root / "models" / model


def directory_name(digest: str) -> str:
    """The name of a digest's directory: its first colon becomes a hyphen."""
    return digest.replace(":", "-", 1)


def digest_named(directory_name: str) -> str:
    """The digest of which a directory has the name."""
    return directory_name.replace("-", ":", 1)


def unlisted(found: Iterable[str], listed: Iterable[str]) -> list[str]:
    """The files of a directory, by relative path, that its manifest does not list."""
    return sorted(set(found) - {*listed, MANIFEST})


def checkpoint_uri(digest: str) -> str:
    """What names a checkpoint's bytes on its model's volume, in whichever folder they lie."""
    return f"volume://{FOLDERS['checkpoint']}/{directory_name(digest)}"


def canonical_json(document: Any) -> str:
    """JSON with sorted keys and without spaces, of which digests are taken."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def digest_of(text: str) -> str:
    """The digest of a text, such as a manifest's canonical JSON."""
    return DIGEST_PREFIX + hashlib.sha256(text.encode()).hexdigest()


def sha256_of(file: BufferedReader) -> str:
    """The hexadecimal SHA-256 of an open file, as manifests list it."""
    return hashlib.file_digest(file, "sha256").hexdigest()
