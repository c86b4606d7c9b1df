"""Makes the folders that a model's trainer writes: ``python -m espalier.trainer.jobs.own_folders``.

It runs before the trainer, which is given these two folders of the volume and no more to write. The
kubelet would make them too, as root, and on volumes that know no fsGroup nobody else could write.
"""

from __future__ import annotations

from espalier.termination import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()

import os
from collections.abc import Mapping
from pathlib import Path

from espalier.api.exit_codes import USER_MISTAKE
from espalier.api.wire.problem import Problem
from espalier.core.volume import checkpoints_of, log_of
from espalier.process import leave_problem
from espalier.trainer.volume.durable_files import make_directory


def main(environment: Mapping[str, str] = os.environ) -> int:
    """The exit code: 0, or 64 where the user of our pods may not write."""
    volume, model = Path(environment["ESPALIER_VOLUME"]), environment["ESPALIER_MODEL"]
    for folder in (checkpoints_of(volume, model), log_of(volume, model)):
        try:
            make_directory(folder)
        except PermissionError as error:
            leave_problem(_problem(folder, error))
            return USER_MISTAKE
        if not os.access(folder, os.W_OK):
            leave_problem(_problem(folder, "it is another user's"))
            return USER_MISTAKE
    return 0


def _problem(folder: Path, why: object) -> Problem:
    return Problem(
        reason="VolumeNotWritable",
        detail=f"{folder} cannot be written by user {os.getuid()}: {why}",
        remedy=f"give it to that user on the volume (chown {os.getuid()}), or use a claim whose "
        "driver applies fsGroup",
    )


if __name__ == "__main__":
    raise SystemExit(main())
