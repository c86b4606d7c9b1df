"""What imports have brought so far and have not put in place: taken over, or swept once left."""

from __future__ import annotations

import logging
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

from espalier.core.volume import FOLDERS, imports_of
from espalier.trainer.volume.durable_files import STAGING, remove

logger = logging.getLogger(__name__)

# An import's Job ends after six hours, and each of its tries marks its folder.
ABANDONED_SECONDS = 24 * 3600.0
# Where versions before kept downloads, and what their importers called a copy of a base.
_DOWNLOADS, _IMPORTER = "downloads", ".importer"


def prepare(volume: Path, model: str) -> None:
    """Marks a model's folder as in use, with what a version before left; sweeps abandoned ones."""
    own, before = imports_of(volume, model), volume / _DOWNLOADS / model
    if before.is_dir() and not before.is_symlink():
        # Over an empty folder. Where both have files, the older ones are swept once abandoned.
        with suppress(OSError):
            before.rename(own)
    os.utime(own)
    with suppress(OSError):
        before.parent.rmdir()
    for path in _abandoned(volume):
        # A sweep that is interrupted goes on by that name.
        doomed = path.with_name(f"{STAGING}{uuid.uuid4().hex}{_IMPORTER}")
        logger.info("%s was left by an import, and is removed", path)
        with suppress(OSError):
            path.rename(doomed)
            remove(doomed)


def _abandoned(volume: Path) -> list[Path]:
    bases = volume / FOLDERS["base"]
    folders = (imports_of(volume, "any").parent, volume / _DOWNLOADS)
    found = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    return [
        path
        for path in (*found, *bases.glob(f"{STAGING}*{_IMPORTER}"))
        if _age(path) > ABANDONED_SECONDS
    ]


def _age(path: Path) -> float:
    """Seconds since it was last marked; 0 if it is gone."""
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0
