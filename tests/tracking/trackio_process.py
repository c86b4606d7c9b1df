"""A process of a run that reports to trackio, or one that tells what trackio's files say.

    python -m tests.tracking.trackio_process script STEP...     as a Fit does
    python -m tests.tracking.trackio_process declared STEP...   as the runner of a declared run does
    python -m tests.tracking.trackio_process read

trackio's directory is one of the process, so each is a process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.runner.standin import spec

from espalier.api.trainingrun import TrainingRunSpec
from espalier.runner.journal import Journal
from espalier.runner.run_trackers import RunTrackers
from espalier.tracking import track
from espalier.tracking.tracker import package
from espalier.tracking.trackers import Trackers

UID = "6f1f9c1e-uid"
SECRET = "planted-secret-of-the-pod"


def script(steps: Sequence[int]) -> None:
    """Tells steps by the tracker's name."""
    made = track(["trackio"], Path(), run_id=UID, project="sums", run_name="third try")
    trackers = Trackers(made)
    trackers.start({"spec": {"learningRate": "1e-3"}, "hubToken": SECRET})
    for step in steps:
        trackers.log(step, {"rollout/reward/mean": step / 10})
    trackers.finish()
    assert trackers.metrics() == {}


def declared(steps: Sequence[int]) -> None:
    """Tells steps by a run's spec."""
    tracking = {"project": "sums", "runName": "third try", "trackio": {"claimName": "boards"}}
    wanted = TrainingRunSpec.model_validate(spec(tracking=tracking))
    trackers = RunTrackers(Journal("default/run"), ("default", "run"))
    for step in steps:
        trackers.step(wanted, UID, step, {"rollout/reward/mean": step / 10})
    trackers.finish()
    assert trackers.metrics() == {}


def read() -> list[dict[str, Any]]:
    """Every run, as trackio itself reads it."""
    trackio = package("trackio", "trackio")
    stored = package("trackio.sqlite_storage", "trackio").SQLiteStorage
    return [
        {
            "name": run.name,
            "config": run.config,
            "rows": [
                [row["step"], row["rollout/reward/mean"]]
                for row in stored.get_logs("sums", run.name)
            ],
        }
        for run in trackio.Api().runs("sums")
    ]


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "read":
        print(json.dumps(read()))
    else:
        {"script": script, "declared": declared}[what]([int(step) for step in rest])
