"""Which pods are Espalier's own: those whose chain of controllers ends in what the operator made.

Labels say what a pod claims to be, and whoever may create pods may copy them. Kubernetes gives each
pod of a workload a reference to its controller, with a uid that no other object has; from there the
chain is followed to the TrainableModel or TrainingRun that the workload was made for.

A reference can be claimed as well, by whoever creates the pod. That nobody but Kubernetes' own
controllers creates pods with these labels is the chart's admission policy: see
docs/operations/security.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from espalier.api.meta import API_VERSION
from espalier.core.manifests.labels import MODEL, ROLE, RUN
from espalier.core.names import (
    collector_name,
    importer_name,
    rollout_name,
    runner_name,
    scrubber_name,
    trainer_name,
)

Body = Mapping[str, Any]
# The object of a kind and name in the pod's namespace, as last seen.
Find = Callable[[str, str], Body | None]


@dataclass(frozen=True)
class Stranger:
    """Why a pod is not what its labels say.

    ``unseen`` is the kind of the object that the chain breaks off at because it is not known.
    """

    reason: str
    message: str
    unseen: str = ""


@dataclass(frozen=True)
class _Link:
    """An object of the chain; an empty name is any."""

    api_version: str
    kind: str
    name: str = ""


def stranger(pod: Body, find: Find) -> Stranger | None:
    """Why a pod is not the one that its labels say it is; None: it is."""
    labels = pod["metadata"].get("labels") or {}
    role, model, run = (labels.get(label, "") for label in (ROLE, MODEL, RUN))
    chain = _chain(role, model, run)
    if not chain:
        return Stranger(
            "RoleUnknown", f"label {ROLE}={role!r} with {MODEL}={model!r} is not a role"
        )
    if role == "trainer" and pod["metadata"]["name"] != f"{trainer_name(model)}-0":
        return Stranger("NameUnknown", f"the trainer's one pod is {trainer_name(model)}-0")
    owned, what = pod, "the pod"
    for link in chain:
        found = _controller(owned, what, link, find)
        if isinstance(found, Stranger):
            return found
        owned, what = found, f"{link.kind} {found['metadata']['name']}"
    return None


def identity_of(body: Body | None) -> tuple[str, tuple[str, ...]]:
    """All of a chain's object that membership depends on; it changes less often than the object."""
    metadata = (body or {}).get("metadata", {})
    return metadata.get("uid", ""), tuple(
        reference.get("uid", "")
        for reference in metadata.get("ownerReferences", ())
        if reference.get("controller")
    )


def _chain(role: str, model: str, run: str) -> tuple[_Link, ...]:
    """From the pod's controller to the object that its workload was made for; empty: no role."""
    root = _Link(API_VERSION, "TrainableModel", model)
    chains = {
        "trainer": (_Link("apps/v1", "StatefulSet", trainer_name(model)), root),
        "rollout": (
            _Link("apps/v1", "ReplicaSet"),
            _Link("apps/v1", "Deployment", rollout_name(model)),
            root,
        ),
        "importer": (_Link("batch/v1", "Job", importer_name(model)), root),
        "scrubber": (_Link("batch/v1", "Job", scrubber_name(model)), root),
        "runner": (
            _Link("batch/v1", "Job", runner_name(run)),
            _Link(API_VERSION, "TrainingRun", run),
        ),
        # Its Job outlives the model, and belongs to nobody.
        "collector": (_Link("batch/v1", "Job", collector_name(model)),),
    }
    return chains.get(role, ()) if model and (run or role != "runner") else ()


def _controller(body: Body, what: str, link: _Link, find: Find) -> Body | Stranger:
    """The controller of an object, if it is the one that the link asks for."""
    reference = next(_references(body), None)
    if reference is None:
        return Stranger("NoController", f"{what} has no controller, must be of {_text(link)}")
    name = str(reference.get("name", ""))
    given = _Link(str(reference.get("apiVersion", "")), str(reference.get("kind", "")), name)
    if given != _Link(link.api_version, link.kind, link.name or name):
        message = f"{what} is of {_text(given)}, must be of {_text(link)}"
        return Stranger("WrongController", message)
    found = find(link.kind, name)
    if found is None:
        message = f"{what} names {_text(given)}, which does not exist"
        return Stranger("ControllerUnknown", message, unseen=link.kind)
    if not reference.get("uid") or found["metadata"].get("uid") != reference["uid"]:
        return Stranger(
            "ControllerReplaced",
            f"{what} names {_text(given)} of uid {reference.get('uid')}, and the one that exists "
            f"is {found['metadata'].get('uid')}",
            unseen=link.kind,
        )
    return found


def _references(body: Body) -> Iterator[Body]:
    for reference in body["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            yield reference


def _text(link: _Link) -> str:
    return f"{link.kind} {link.name}".strip()
