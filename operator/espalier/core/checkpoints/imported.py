"""The Checkpoint of an adapter from outside: step 0 of its model."""

from __future__ import annotations

from espalier.api.checkpoint import CheckpointSpec
from espalier.api.meta import API_VERSION, ObjectRef
from espalier.api.source import Resolved
from espalier.api.trainablemodel import TrainableModel
from espalier.core.lineage.lineage import Lineage
from espalier.core.manifests import labels
from espalier.core.manifests.intent import Manifest
from espalier.core.names import MAIN, imported_name
from espalier.core.volume import checkpoint_uri

FIRST_TERM = 1


def root(model: TrainableModel, resolved: Resolved | None, lineage: Lineage) -> Manifest | None:
    """The Checkpoint to create once the adapter is on the volume.

    None for a model without one, and for a model whose tree exists: of an earlier model of the
    same name, or because someone deleted the root of a tree that has grown.
    """
    adapter = resolved.adapter if resolved is not None else None
    if adapter is None or lineage.by_name:
        return None
    name = model.metadata.name
    spec = CheckpointSpec(
        model_ref=ObjectRef(name=name),
        step=0,
        branch=MAIN,
        term=FIRST_TERM,
        uri=checkpoint_uri(adapter.digest),
        digest=adapter.digest,
        size_bytes=adapter.size_bytes,
        lora_rank=model.spec.adapter.rank,
    )
    return {
        "apiVersion": API_VERSION,
        "kind": "Checkpoint",
        "metadata": {
            "name": imported_name(name),
            "namespace": model.metadata.namespace,
            "labels": {**labels.MANAGED, labels.MODEL: name, labels.BRANCH: MAIN},
        },
        "spec": spec.wire(),
    }
