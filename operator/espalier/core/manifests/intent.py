"""The frame of every child: a derived name, labels, an owner and a hash of what is wanted."""

from __future__ import annotations

from typing import Any, Literal

from espalier.api.meta import API_VERSION, ObjectMeta
from espalier.core.manifests.labels import TEMPLATE_HASH
from espalier.core.volume import DIGEST_PREFIX, canonical_json, digest_of

Manifest = dict[str, Any]
OwnerKind = Literal["TrainableModel", "TrainingRun"]


def child(
    api_version: str,
    kind: str,
    name: str,
    *,
    labels: dict[str, str],
    owner_kind: OwnerKind,
    owner: ObjectMeta,
    spec: Manifest,
) -> Manifest:
    """The complete intent of a child; deleting the owner deletes it."""
    body: Manifest = {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": labels,
            "ownerReferences": [owner_reference(owner_kind, owner, controller=True)],
        },
        "spec": spec,
    }
    body["metadata"]["annotations"] = {TEMPLATE_HASH: _digest(body)}
    return body


def is_current(live: Manifest | None, intent: Manifest) -> bool:
    """Whether the live child was made from this very intent, so that it need not be applied again.

    ``replicas`` is compared as well: it is what people and autoscalers change by hand.
    """
    if live is None:
        return False
    wanted = intent["metadata"]["annotations"][TEMPLATE_HASH]
    if live["metadata"].get("annotations", {}).get(TEMPLATE_HASH) != wanted:
        return False
    return bool(live["spec"].get("replicas") == intent["spec"].get("replicas"))


def foreign(live: Manifest, intent: Manifest) -> str:
    """Whose a live object is that has the name of a child and is another's; empty if it is ours.

    One of our labels and of no controller is a child whose owner was deleted without it.
    """
    (owner,) = intent["metadata"]["ownerReferences"]
    references = live["metadata"].get("ownerReferences") or ()
    controllers = [reference for reference in references if reference.get("controller")]
    if not controllers:
        labels = live["metadata"].get("labels") or {}
        ours = intent["metadata"]["labels"].items() <= labels.items()
        return "" if ours else "nobody's of Espalier"
    (controller,) = controllers
    if controller["uid"] == owner["uid"]:
        return ""
    return f"{controller['kind']} {controller['name']}'s"


def owner_reference(kind: OwnerKind, owner: ObjectMeta, *, controller: bool) -> Manifest:
    """The reference by which an object is deleted with its owner."""
    # blockOwnerDeletion would need rights on the owner's finalizers in some clusters.
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": controller,
        "blockOwnerDeletion": False,
    }


def _digest(body: Manifest) -> str:
    return digest_of(canonical_json(body)).removeprefix(DIGEST_PREFIX)[:32]
