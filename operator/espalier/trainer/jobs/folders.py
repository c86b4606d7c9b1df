"""Makes the folders that a pod mounts by themselves: ``python -m espalier.trainer.jobs.folders``.

It runs before what sees these parts of the volume and no more: every pod of a model.
The kubelet would make them too, as root, and on volumes that know no fsGroup nobody else could
write. Versions before kept the checkpoints of all models in one folder: what is left there moves to
the folder of its model.
"""

from __future__ import annotations

from espalier.termination import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()

import errno
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from espalier.api.exit_codes import FAULT, USER_MISTAKE
from espalier.core.volume import (
    FOLDERS,
    MANIFEST,
    base_directory,
    checkpoints_of,
    digest_named,
    imports_of,
    is_digest,
    log_of,
)
from espalier.process import configure_logs, leave_problem
from espalier.trainer.jobs import import_folders
from espalier.trainer.problems import CommandError, UserMistakeError
from espalier.trainer.volume.durable_files import make_directory, sync, volume_written
from espalier.trainer.volume.manifests import named_model

logger = logging.getLogger(__name__)


def main(environment: Mapping[str, str] = os.environ) -> int:
    """The exit code: 0, 64 where a person must act, or 1 for a fault of the volume."""
    volume, model = Path(environment["ESPALIER_VOLUME"]), environment["ESPALIER_MODEL"]
    others = [*filter(None, environment.get("ESPALIER_READS", "").split(","))]
    writes, imports = (name in environment for name in ("ESPALIER_WRITES", "ESPALIER_IMPORTS"))
    written = [checkpoints_of(volume, model)] if writes or imports else []
    written += [log_of(volume, model)] if writes else []
    written += [volume / FOLDERS["base"], imports_of(volume, model)] if imports else []
    try:
        with volume_written(volume):
            make_folders(volume, model, others, written)
            bring_home(volume)
            if imports:
                import_folders.prepare(volume, model)
        if digest := environment.get("ESPALIER_BASE", ""):
            look_for(base_directory(volume, digest))
    except UserMistakeError as error:
        leave_problem(error.problem)
        return USER_MISTAKE
    except CommandError as error:
        leave_problem(error.problem)
        return FAULT
    return 0


def make_folders(volume: Path, model: str, others: Sequence[str], written: Sequence[Path]) -> None:
    """Makes the folders that a pod reads, of its model and of others, and those ``written``.

    A pod that only reads starts on a volume that cannot be written now, if they are there.
    """
    for folder in (*(checkpoints_of(volume, name) for name in (model, *others)), *written):
        try:
            make_directory(folder)
        except PermissionError as error:
            raise _unwritable(folder, error) from error
    for folder in written:
        if os.access(folder, os.W_OK):
            continue
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))
        raise _unwritable(folder, "it is another user's")


def bring_home(volume: Path) -> None:
    """Moves checkpoints that lie beside the models' folders into the folder of their model.

    What does not say by its digest whose it is stays where it is. Other pods may do the same now.
    """
    shared = volume / FOLDERS["checkpoint"]
    for path in [p for p in shared.iterdir() if is_digest(digest_named(p.name))]:
        model = named_model(path)
        # It becomes the name of a folder.
        if PurePosixPath(model).name != model or model.startswith(".") or not model:
            logger.warning("%s is no checkpoint of a model, and stays", path)
            continue
        home = checkpoints_of(volume, model)
        make_directory(home)
        try:
            path.rename(home / path.name)
        except FileNotFoundError:
            continue
        except PermissionError as error:
            raise _unwritable(shared, error) from error
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            logger.warning("%s stays: it is in %s as well", path, home)
            continue
        sync(home)
        sync(shared)
        logger.info("moved %s to %s", path.name, home)


def look_for(base: Path) -> None:
    """Says that a base is missing, before the kubelet puts an empty folder in its place."""
    if not (base / MANIFEST).is_file():
        raise UserMistakeError(
            "BaseNotFound",
            f"{base.name} is not on the volume",
            "restore the volume, or import the base again: by another TrainableModel of the same "
            "source on this claim",
        )


def _unwritable(folder: Path, why: object) -> UserMistakeError:
    return UserMistakeError(
        "VolumeNotWritable",
        f"{folder} cannot be written by user {os.getuid()}: {why}",
        f"give it to that user on the volume (chown {os.getuid()}), or use a claim whose driver "
        "applies fsGroup",
    )


if __name__ == "__main__":
    configure_logs()
    raise SystemExit(main())
