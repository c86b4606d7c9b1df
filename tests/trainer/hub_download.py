"""The importer's download alone, in the process that the hub's client wants for itself.

``python -m tests.trainer.hub_download OWNER/NAME@REVISION TARGET``: what follows it, the check of a
base, imports torch and transformers, which is most of an import's CPU time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from espalier import process
from espalier.trainer.jobs.hub import Download
from espalier.trainer.jobs.hub_repository import Repository
from espalier.trainer.jobs.import_order import BASE_FIELD
from espalier.trainer.volume.base_files import PATTERNS

if __name__ == "__main__":
    process.configure_logs()
    named, target = sys.argv[1:]
    patience = float(os.environ["ESPALIER_HUB_PATIENCE_SECONDS"])
    Download(Repository.parse(named, BASE_FIELD), Path(target), PATTERNS, "", patience).run()
