"""``python -m espalier.environments.place_host DIRECTORY``: copies the host for another image."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from espalier.environments import host


def main(directory: Path) -> None:
    """The one file that the user's image runs."""
    shutil.copyfile(host.__file__, directory / "host.py")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
