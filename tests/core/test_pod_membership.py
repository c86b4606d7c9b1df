"""Who is this pod: the table of chains that make it Espalier's own, and of all that does not."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.api.meta import API_VERSION
from espalier.core.pods.pod_membership import Stranger, stranger

Body = dict[str, Any]
APPS, BATCH = "apps/v1", "batch/v1"


class Objects:
    """The objects of a namespace."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], Body] = {}

    def put(self, api: str, kind: str, name: str, uid: str, owner: Body | None = None) -> Body:
        """Holds an object; the reference to it."""
        owners = [owner] if owner else []
        self.held[kind, name] = {"metadata": {"name": name, "uid": uid, "ownerReferences": owners}}
        return reference(api, kind, name, uid)

    def find(self, kind: str, name: str) -> Body | None:
        return self.held.get((kind, name))


def reference(api: str, kind: str, name: str, uid: str, *, controller: bool = True) -> Body:
    return {"apiVersion": api, "kind": kind, "name": name, "uid": uid, "controller": controller}


def pod(role: str, name: str, *owners: Body, **labels: str) -> Body:
    said = {"espalier.dev/role": role, "espalier.dev/model": "m", **labels}
    return {"metadata": {"name": name, "labels": said, "ownerReferences": [*owners]}}


@pytest.fixture
def objects() -> Objects:
    """What the operator and Kubernetes made for TrainableModel m and its TrainingRun r."""
    made = Objects()
    model = made.put(API_VERSION, "TrainableModel", "m", "u-m")
    run = made.put(API_VERSION, "TrainingRun", "r", "u-r")
    made.put(APPS, "StatefulSet", "m-trainer", "u-sts", model)
    deployment = made.put(APPS, "Deployment", "m-rollout", "u-deploy", model)
    made.put(APPS, "ReplicaSet", "m-rollout-abc", "u-rs", deployment)
    made.put(APPS, "ReplicaSet", "m-rollout-old", "u-old", deployment)
    made.put(BATCH, "Job", "m-import", "u-import", model)
    made.put(BATCH, "Job", "r-runner", "u-runner", run)
    made.put(BATCH, "Job", "m-collect", "u-collect")
    return made


TRAINER = reference(APPS, "StatefulSet", "m-trainer", "u-sts")
REPLICAS = reference(APPS, "ReplicaSet", "m-rollout-abc", "u-rs")
IMPORTER = reference(BATCH, "Job", "m-import", "u-import")
RUNNER = reference(BATCH, "Job", "r-runner", "u-runner")
COLLECTOR = reference(BATCH, "Job", "m-collect", "u-collect")
RUN = {"espalier.dev/run": "r"}


@pytest.mark.parametrize(
    "own",
    [
        pod("trainer", "m-trainer-0", TRAINER),
        pod("rollout", "m-rollout-abc-x", REPLICAS),
        # Of the template before, while a change of it is rolled out.
        pod("rollout", "m-rollout-old-x", reference(APPS, "ReplicaSet", "m-rollout-old", "u-old")),
        pod("importer", "m-import-x", IMPORTER),
        pod("runner", "r-runner-x", RUNNER, **RUN),
        pod("collector", "m-collect-x", COLLECTOR),
        pod("rollout", "x", reference(APPS, "Any", "y", "z", controller=False), REPLICAS),
    ],
    ids=lambda own: own["metadata"]["name"],
)
def test_a_pod_whose_controllers_end_in_what_the_operator_made_is_its_own(
    objects: Objects, own: Body
) -> None:
    assert stranger(own, objects.find) is None


@pytest.mark.parametrize(
    ("forged", "reason"),
    [
        (pod("trainer", "m-trainer-0"), "NoController"),
        (pod("rollout", "m-rollout-abc-x"), "NoController"),
        (pod("importer", "m-import-x"), "NoController"),
        (pod("runner", "r-runner-x", **RUN), "NoController"),
        (pod("collector", "m-collect-x"), "NoController"),
        # A second trainer, whose name would sort first.
        (pod("trainer", "aaa", TRAINER), "NameUnknown"),
        (pod("trainer", "m-trainer-1", TRAINER), "NameUnknown"),
        # A controller of another's, with another's or with a borrowed name.
        (
            pod("rollout", "x", reference(APPS, "ReplicaSet", "mine", "u-mine")),
            "WrongController",
        ),
        (pod("importer", "x", reference(BATCH, "Job", "mine", "u-mine")), "WrongController"),
        (pod("importer", "x", COLLECTOR), "WrongController"),
        (pod("rollout", "x", TRAINER), "WrongController"),
        (
            pod("importer", "x", reference("other.dev/v1", "Job", "m-import", "u-import")),
            "WrongController",
        ),
        (pod("runner", "x", RUNNER), "RoleUnknown"),
        (pod("runner", "x", RUNNER, **{"espalier.dev/run": "other"}), "WrongController"),
        (pod("master", "x", REPLICAS), "RoleUnknown"),
        (pod("rollout", "x", REPLICAS, **{"espalier.dev/model": ""}), "RoleUnknown"),
        (pod("rollout", "x", REPLICAS, **{"espalier.dev/model": "n"}), "WrongController"),
        # A reference that names what does not exist, or no longer.
        (
            pod("rollout", "x", reference(APPS, "ReplicaSet", "gone", "u-gone")),
            "ControllerUnknown",
        ),
        (
            pod("trainer", "m-trainer-0", reference(APPS, "StatefulSet", "m-trainer", "u-old")),
            "ControllerReplaced",
        ),
        (
            pod("trainer", "m-trainer-0", reference(APPS, "StatefulSet", "m-trainer", "")),
            "ControllerReplaced",
        ),
        # An owner, but none that controls it.
        (
            pod(
                "importer",
                "x",
                reference(BATCH, "Job", "m-import", "u-import", controller=False),
            ),
            "NoController",
        ),
    ],
)
def test_a_pod_that_copies_labels_or_borrows_a_controller_is_a_stranger(
    objects: Objects, forged: Body, reason: str
) -> None:
    objects.put(BATCH, "Job", "mine", "u-mine")
    mine = objects.put(APPS, "Deployment", "mine", "u-mine")
    objects.put(APPS, "ReplicaSet", "mine", "u-mine", mine)
    found = stranger(forged, objects.find)
    assert found is not None
    assert (found.reason, bool(found.message)) == (reason, True)


@pytest.mark.parametrize(("kind", "name"), [("StatefulSet", "m-trainer"), ("TrainableModel", "m")])
def test_what_is_not_known_yet_is_told_apart_from_what_is_wrong(
    objects: Objects, kind: str, name: str
) -> None:
    del objects.held[kind, name]
    found = stranger(pod("trainer", "m-trainer-0", TRAINER), objects.find)
    assert isinstance(found, Stranger)
    assert (found.reason, found.unseen) == ("ControllerUnknown", kind)


def test_the_pods_of_a_model_that_was_made_anew_are_those_of_the_one_before(
    objects: Objects,
) -> None:
    objects.put(API_VERSION, "TrainableModel", "m", "u-m-2")
    found = stranger(pod("rollout", "x", REPLICAS), objects.find)
    assert found is not None
    assert found.reason == "ControllerReplaced"
    assert "TrainableModel m of uid u-m" in found.message


def test_a_workload_that_somebody_else_made_under_our_name_is_none_of_ours(
    objects: Objects,
) -> None:
    theirs = objects.put(APPS, "StatefulSet", "m-trainer", "u-theirs")
    found = stranger(pod("trainer", "m-trainer-0", theirs), objects.find)
    assert found is not None
    assert found.reason == "NoController"
    assert "StatefulSet m-trainer has no controller" in found.message
