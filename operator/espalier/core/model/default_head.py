"""The head that a model gets where nobody declares one."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

from espalier.api.meta import API_VERSION
from espalier.api.trainablemodel import TrainableModel
from espalier.core.gitowner import git_owner
from espalier.core.manifests.intent import owner_reference

# Whoever declares a model may declare its head as well, a moment later. Made before that comes, the
# default head would be in the way: kubectl fails (AlreadyExists), and a head that Git takes over
# goes with the model that owns it. The first is for kubectl and Helm, the second for a sync.
APPLY_SECONDS = 2.0
SYNC_SECONDS = 60.0


def due_in(model: TrainableModel, now: str) -> float:
    """Seconds until the head is overdue: whoever declared the model had time to declare it."""
    wait = SYNC_SECONDS if git_owner(asdict(model.metadata)) is not None else APPLY_SECONDS
    age = datetime.fromisoformat(now) - datetime.fromisoformat(model.metadata.creation_timestamp)
    # Clocks that disagree by more must not hold the head up.
    return max(0.0, wait - abs(age.total_seconds()))


def manifest(model: TrainableModel) -> dict[str, object]:
    """The head that a model without one gets: created once, never updated, deleted with it."""
    metadata = model.metadata
    return {
        "apiVersion": API_VERSION,
        "kind": "CheckpointHead",
        "metadata": {
            "name": metadata.name,
            "namespace": metadata.namespace,
            "ownerReferences": [owner_reference("TrainableModel", metadata, controller=False)],
        },
        "spec": {"modelRef": {"name": metadata.name}, "mode": "Track"},
    }
