"""``python -m espalier.environments.place_host DIRECTORY``: copies the host for other images."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from espalier.environments import host


def main(directory: Path) -> None:
    """The files that a user's image runs: the host, and what it plays verifiers' tasks with."""
    here = Path(host.__file__).parent
    for name in ("host.py", "verifiers_host.py"):
        shutil.copyfile(here / name, directory / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
