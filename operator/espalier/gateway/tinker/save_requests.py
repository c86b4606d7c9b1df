"""What is refused of saves and loads before their trainer sees them. Pure."""

from __future__ import annotations

from espalier.api.checkpoint import Checkpoint
from espalier.api.trainablemodel import TrainableModel
from espalier.core.model import reads
from espalier.gateway.problems import RefusalError
from espalier.gateway.tinker.bodies import LoadWeights, SaveFiles, SaveWeights
from espalier.gateway.tinker.names import is_name

SAVE, SAVE_FOR_SAMPLER = "save_weights", "save_weights_for_sampler"
SAVE_FILES = "save_weights_external"


def only_weights(asked: LoadWeights) -> None:
    """Refuses what is of a new model alone."""
    fields = ("base_model", "user_metadata", "optimizer_config")
    if given := [name for name in fields if getattr(asked, name)]:
        raise RefusalError(
            422,
            "InvalidRequest",
            f"{' and '.join(given)} would not change the model that weights are loaded into",
            "Leave that out, or send session_id and model_seq_id for a new model",
        )


def sees(model: TrainableModel, checkpoint: Checkpoint) -> bool:
    """Whether the trainer of a model has the part of the volume that a checkpoint lies in."""
    parents = reads.folders(model.status.reads, reads.named(model, ()))
    return checkpoint.spec.model_ref.name in (model.metadata.name, *parents)


def only_seen(model: TrainableModel | None, checkpoint: Checkpoint, path: str) -> None:
    """Refuses weights that the trainer of a model cannot read: those of models it has no part of.

    ``path`` is how the caller names them.
    """
    if model is not None and not sees(model, checkpoint):
        owner, own = checkpoint.spec.model_ref.name, model.metadata.name
        raise RefusalError(
            422,
            "WeightsOfAnotherModel",
            f"path: {path} is of model {owner}, whose part of the volume the trainer of {own} does "
            "not see",
            "Create a training client from it: create_training_client_from_state",
        )


def _require_name(path: str) -> None:
    if not is_name(path):
        raise RefusalError(
            422,
            "InvalidRequest",
            f"path is {path[:80]!r}",
            "Take at most 63 letters, digits, '.', '_' and '-' as the name",
        )


def checked_files(asked: SaveFiles) -> SaveFiles:
    """The request, if it can be honoured; else RefusalError."""
    _require_name(asked.path)
    if asked.age_encryption_recipients:
        raise RefusalError(
            422,
            "InvalidRequest",
            "age_encryption_recipients: files are downloaded from your own volume, unencrypted",
            "Leave it out, and encrypt what you have downloaded",
        )
    return asked


def checked_save(asked: SaveWeights) -> SaveWeights:
    """The request, if it can be honoured; else RefusalError."""
    if asked.path is not None:
        _require_name(asked.path)
    if asked.path is None and asked.type == SAVE_FOR_SAMPLER and asked.ttl_seconds is not None:
        raise RefusalError(
            422, "InvalidRequest", "ttl_seconds needs a name", "Give path, or leave it out"
        )
    return asked
