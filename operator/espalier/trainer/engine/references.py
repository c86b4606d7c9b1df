"""Finds the checkpoints that a loss is held near, by their names."""

from __future__ import annotations

from espalier.api.model.adapter import Adapter
from espalier.core.names import checkpoint_name
from espalier.trainer.engine import checkpoint_files
from espalier.trainer.problems import invalid
from espalier.trainer.volume.checkpoint_store import CheckpointStore, Stored, Verified


class References:
    """The checkpoints on a volume that a model of this base and adapter can be compared with.

    It remembers those that it has verified, and verifies again what somebody touched since.
    """

    def __init__(self, store: CheckpointStore, base: str, adapter: Adapter) -> None:
        self._store = store
        self._base = base
        self._adapter = adapter
        self._verified: dict[str, Verified] = {}

    def find(self, name: str) -> Verified:
        """The Checkpoint of that name.

        Raises:
            CommandError: 422 if the volume has none, 409 if it is damaged, of another base or of
                another adapter.
        """
        known = self._verified.get(name)
        if known is None or not known.noted.stands():
            found = self._named(name)
            known = checkpoint_files.read(
                self._store, found.digest, self._base, self._adapter
            ).stored
            self._verified[name] = known
        return known

    def _named(self, name: str) -> Stored:
        for stored in self._store.checkpoints():
            of = stored.manifest
            if checkpoint_name(of["model"], of["branch"], int(of["step"])) == name:
                return stored
        raise invalid(
            "kl.checkpoint",
            f"is {name}, and no such checkpoint is on the model's volume",
            "name a Checkpoint of this model, or of another model on its volume, in the run's "
            "kl.reference.checkpointRef",
        )
