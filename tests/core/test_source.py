"""How the source of a model becomes known, and why it may not."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.core.objects import NOW, checkpoint, digest, head, model

from espalier.api.trainablemodel import TrainableModel
from espalier.api.wire.problem import Problem
from espalier.core.lineage.lineage import BASE_POINT
from espalier.core.lineage.lineage_index import grow
from espalier.core.model import default_head, source
from espalier.core.model import model as models
from espalier.core.model.source import SourceDecision, SourceView
from espalier.core.pods.blockers import Blocker
from espalier.core.pods.pods import JobState, Pod

RESOLVED = {"uri": "volume://bases/b", "revision": "1", "digest": digest("base")}
RUNNING = JobState("j", 0, complete=False, failed=False, terminating=False)
COMPLETE, FAILED = replace(RUNNING, complete=True), replace(RUNNING, failed=True, failure="X: y")
POD = Pod(
    "p", "1", "importer", "", "1", started=False, ready=False, terminating=False, finished=True
)
FORK = {"source": {"checkpointRef": {"name": "m-000001"}}}


@pytest.mark.parametrize(
    ("importer", "pod", "reason", "action", "permanent"),
    [
        (None, None, "Importing", "Create", False),
        (RUNNING, None, "Importing", "Keep", False),
        (
            RUNNING,
            replace(
                POD,
                finished=False,
                waiting="ImagePullBackOff: x",
                waiting_reason="ImagePullBackOff",
            ),
            "ImagePullBackOff",
            "Keep",
            False,
        ),
        (COMPLETE, replace(POD, message=json.dumps(RESOLVED)), "Resolved", "Keep", False),
        (COMPLETE, None, "Importing", "Delete", False),
        (
            FAILED,
            replace(POD, problem=Problem(detail="no config.json", reason="BaseUnreadable")),
            "BaseUnreadable",
            "Keep",
            True,
        ),
        (FAILED, replace(POD, copying="Error: cp: /models: none"), "BaseUnreadable", "Keep", True),
        (FAILED, None, "ImportFailed", "Keep", True),
        (replace(FAILED, terminating=True), None, "Importing", "Keep", False),
    ],
)
def test_a_base_is_known_once_its_importer_reports_it(
    importer: JobState | None, pod: Pod | None, reason: str, action: str, permanent: bool
) -> None:
    view = SourceView(model(), importer=importer, importer_pods=[pod] if pod else [])
    decision = source.decide(view)
    assert (decision.finding.reason, decision.importer) == (reason, action)
    assert decision.permanent == permanent
    assert (decision.resolved is not None) == (reason == "Resolved")


ADAPTER = {"digest": digest("adapter"), "sizeBytes": 7}
WITH_ADAPTER = {
    "base": {"image": "registry.example/tiny:1"},
    "adapter": {"image": "registry.example/lora:1"},
}


@pytest.mark.parametrize(
    ("spec", "report", "reason"),
    [
        (WITH_ADAPTER, {**RESOLVED, "adapter": ADAPTER}, "Resolved"),
        # A report of another importer's version: it is asked for again.
        (WITH_ADAPTER, RESOLVED, "Importing"),
    ],
)
def test_an_adapter_is_known_with_its_base(
    spec: dict[str, Any], report: dict[str, Any], reason: str
) -> None:
    pod = replace(POD, message=json.dumps(report))
    decision = source.decide(SourceView(model(source=spec), importer=COMPLETE, importer_pods=[pod]))
    assert decision.finding.reason == reason
    if decision.resolved is not None:
        assert decision.resolved.wire()["adapter"] == ADAPTER


@pytest.mark.parametrize(
    ("reason", "detail", "remedy"),
    [
        ("AdapterMismatch", "spec.adapter.rank is 16, the adapter's is 8", "rank: 8"),
        ("PickleRefused", "the adapter holds adapter_model.bin", "safe_serialization=True"),
    ],
)
def test_what_the_importer_refuses_names_field_and_remedy(
    reason: str, detail: str, remedy: str
) -> None:
    refused = Problem(detail=detail, reason=reason, remedy=remedy)
    pods_ = [replace(POD, problem=refused)]
    view = SourceView(model(source=WITH_ADAPTER), importer=FAILED, importer_pods=pods_)
    decision = source.decide(view)
    assert (decision.finding.reason, decision.permanent) == (reason, True)
    assert detail in decision.finding.message
    assert remedy in decision.finding.message


def test_what_an_importer_says_that_opened_strangers_bytes_is_no_result() -> None:
    forged = {**RESOLVED, "digest": digest("another's")}
    taken_over = replace(POD, preparing=True, message=json.dumps(forged))
    honest = replace(POD, uid="2", message=json.dumps(RESOLVED))
    view = SourceView(model(), importer=COMPLETE, importer_pods=[taken_over, honest])
    resolved = source.decide(view).resolved
    assert resolved is not None
    assert resolved.digest == RESOLVED["digest"]
    view = replace(view, importer_pods=[taken_over])
    assert source.decide(view).resolved is None


def test_once_all_bytes_are_there_an_import_is_at_its_end_and_says_so() -> None:
    placing = replace(POD, finished=False, started=True, placing=True)
    view = SourceView(model(), importer=RUNNING, importer_pods=[placing])
    assert "its bytes are there, and are checked" in source.decide(view).finding.message
    progress = {"doneBytes": 2**30, "totalBytes": 2**31, "bytesPerSecond": 9, "percent": 50}
    last = model(status={"importProgress": progress})
    decision = source.decide(replace(view, model=last))
    assert "all 2.0 GiB are there, and are checked" in decision.finding.message
    assert decision.progress is not None
    assert (decision.progress.percent, decision.progress.bytes_per_second) == (100, 0)


BUSY = Problem(detail="the hub answers 503", reason="HubBusy", remedy="use a mirror")
TRIED = replace(POD, message=BUSY.model_dump_json())


def test_an_import_that_failed_for_good_says_the_last_error_and_what_to_do() -> None:
    decision = source.decide(SourceView(model(), importer=FAILED, importer_pods=[TRIED]))
    assert (decision.finding.reason, decision.permanent) == ("HubBusy", True)
    said = decision.finding.message
    assert all(text in said for text in (BUSY.detail, BUSY.remedy, "X: y", "delete the Job"))


def test_an_import_that_is_tried_again_says_why() -> None:
    decision = source.decide(SourceView(model(), importer=RUNNING, importer_pods=[TRIED]))
    assert (decision.finding.reason, decision.permanent) == ("Importing", False)
    assert decision.finding.message.endswith("tried again after: the hub answers 503")


DIED = replace(POD, died="the container ended with exit code 137: Killed")
KEPT = replace(POD, finished=False, outlived=("proxy",))


def test_an_import_that_died_without_a_message_leaves_its_last_lines() -> None:
    decision = source.decide(SourceView(model(), importer=FAILED, importer_pods=[DIED]))
    assert decision.finding.reason == "ImportFailed"
    assert "exit code 137: Killed" in decision.finding.message


@pytest.mark.parametrize(
    ("job", "pods_", "blocker", "reason", "text"),
    [
        (RUNNING, [], Blocker("FailedCreate", "exceeded quota"), "FailedCreate", "quota"),
        # It was refused once, and has had a pod since.
        (RUNNING, [POD], Blocker("FailedCreate", "exceeded quota"), "Importing", "brings"),
        (replace(RUNNING, suspended=True), [], None, "JobSuspended", "spec.suspend"),
        (RUNNING, [replace(KEPT, died="exit code 1")], None, "SidecarRunning", "proxy runs on"),
    ],
)
def test_what_keeps_an_import_from_starting_or_ending_is_named(
    job: JobState, pods_: list[Pod], blocker: Blocker | None, reason: str, text: str
) -> None:
    decision = source.decide(
        SourceView(model(), importer=job, importer_pods=pods_, blocker=blocker)
    )
    assert decision.finding.reason == reason
    assert text in decision.finding.message


def test_a_sidecar_holds_no_import_up_and_its_job_is_removed_once_the_report_is_on_record() -> None:
    kept = [replace(KEPT, message=json.dumps(RESOLVED))]
    decision = source.decide(SourceView(model(), importer=RUNNING, importer_pods=kept))
    assert (decision.finding.reason, decision.importer) == ("Resolved", "Keep")
    known = model(status={"resolved": RESOLVED})
    decision = source.decide(SourceView(known, importer=RUNNING, importer_pods=kept))
    assert decision.importer == "Delete"


def test_a_fork_does_not_start_where_its_origins_model_did() -> None:
    parent = model("m", source=WITH_ADAPTER, status={"resolved": {**RESOLVED, "adapter": ADAPTER}})
    decision = source.decide(SourceView(model("fork", **FORK), checkpoint(), parent))
    assert decision.resolved is not None
    assert decision.resolved.adapter is None


def test_once_known_it_stays_known_without_the_job() -> None:
    decision = source.decide(SourceView(model(status={"resolved": RESOLVED})))
    assert (decision.finding.status, decision.importer) == ("True", "Keep")


def test_what_a_sampler_must_stop_at_itself_is_said_with_the_base() -> None:
    end = {"token": "<|im_end|>", "tokenId": 7}
    resolved = {**RESOLVED, "unstoppedTurnEnd": end}
    decision = source.decide(SourceView(model(status={"resolved": resolved})))
    assert decision.finding.message.endswith(
        "the chat template closes turns with '<|im_end|>', which ends no completion: sample with "
        "stopTokenIds: [7]"
    )


PARENT = model("m", status={"resolved": RESOLVED})


@pytest.mark.parametrize(
    ("changes", "parent", "reason", "permanent"),
    [
        ({}, PARENT, "Resolved", False),
        ({}, model("m"), "Resolving", False),
        ({}, None, "ModelNotFound", True),
        ({"adapter": {"rank": 8}}, PARENT, "SourceMismatch", True),
        ({"adapter": {"alpha": 8}}, PARENT, "SourceMismatch", True),
        ({"adapter": {"type": "Full"}}, PARENT, "SourceMismatch", True),
        ({"adapter": {"targetModules": ["q_proj"]}}, PARENT, "SourceMismatch", True),
        (
            {"storage": {"persistentVolumeClaim": {"claimName": "other"}}},
            PARENT,
            "SourceMismatch",
            True,
        ),
    ],
)
def test_a_fork_must_fit_its_origin(
    changes: dict[str, Any], parent: Any, reason: str, permanent: bool
) -> None:
    fork = model("fork", **FORK, **changes)
    decision = source.decide(SourceView(fork, checkpoint(), parent))
    assert (decision.finding.reason, decision.permanent) == (reason, permanent)
    for field in changes:
        assert f"spec.{field}" in decision.finding.message


def test_a_fork_of_nothing_says_so() -> None:
    decision = source.decide(SourceView(model("fork", **FORK)))
    assert decision.finding.reason == "CheckpointNotFound"


def ready(subject: Any, **changes: Any) -> models.ModelDecision:
    known = source.decide(SourceView(model(status={"resolved": RESOLVED})))
    facts: dict[str, Any] = {"source": known, "lineage": grow([], BASE_POINT), "heads": [head()]}
    return models.decide(models.ModelView(subject, **{**facts, **changes}), NOW)


SERVER = Pod(
    "s", "1", "rollout", "ip", "1", started=True, ready=True, terminating=False, finished=False
)


@pytest.mark.parametrize(
    ("replicas", "trains", "rollouts", "trainers", "reason"),
    [
        (1, False, [SERVER], [], "True/Ready"),
        (0, False, [], [], "True/Ready"),
        (1, False, [], [], "False/Starting"),
        (2, False, [SERVER], [], "False/Starting"),
        (1, True, [SERVER], [], "False/Starting"),
        (1, True, [SERVER], [SERVER], "True/Ready"),
        (1, False, [replace(SERVER, terminating=True)], [], "False/Starting"),
    ],
)
def test_a_model_is_ready_when_what_is_wanted_is_ready(
    replicas: int, trains: bool, rollouts: list[Pod], trainers: list[Pod], reason: str
) -> None:
    decision = ready(
        model(rollout={"replicas": replicas}),
        trains=trains,
        rollout_pods=rollouts,
        trainer_pods=trainers,
    )
    found = decision.status.conditions[0]
    assert f"{found.status}/{found.reason}" == reason
    assert (decision.trainer_replicas, decision.rollout_replicas) == (int(trains), replicas)


def test_a_trainer_that_was_killed_for_memory_says_so_even_when_it_serves_again() -> None:
    again = replace(SERVER, killed="OOMKilled: the container used more than its limit of 1Gi")
    decision = ready(model(), trains=True, rollout_pods=[SERVER], trainer_pods=[again])
    said = {c.type: c for c in decision.status.conditions}["TrainerReady"]
    assert said.status == "True"
    assert "OOMKilled" in said.message


def test_nothing_is_started_before_the_base_is_known() -> None:
    unknown: SourceDecision = source.decide(SourceView(model()))
    decision = ready(model(), source=unknown, trains=True)
    assert (decision.trainer_replicas, decision.rollout_replicas) == (None, None)


def aged(seconds: int, **metadata: Any) -> TrainableModel:
    """A model that was created so long ago, or is to be."""
    created = (datetime.fromisoformat(NOW) - timedelta(seconds=seconds)).isoformat()
    subject = model()
    said = replace(subject.metadata, creation_timestamp=created, **metadata)
    return subject.model_copy(update={"metadata": said})


ARGO = {"argocd.argoproj.io/tracking-id": "models:espalier.dev/TrainableModel:default/m"}
FLUX = {"kustomize.toolkit.fluxcd.io/name": "models"}


@pytest.mark.parametrize(
    ("seconds", "metadata", "wait"),
    [
        # kubectl and Helm declare the next object at once.
        (0, {}, 2),
        (1, {}, 1),
        (2, {}, 0),
        # A sync may take a while to come to the head.
        (2, {"annotations": ARGO}, 58),
        (59, {"labels": FLUX}, 1),
        (60, {"labels": FLUX}, 0),
        # The API server's clock is ahead, a little or too far to say anything.
        (-1, {}, 1),
        (-3600, {}, 0),
    ],
)
def test_a_default_head_gives_way_to_one_that_is_declared_with_the_model(
    seconds: int, metadata: dict[str, Any], wait: float
) -> None:
    assert ready(aged(seconds, **metadata), heads=[]).head_in == wait


def test_a_model_without_a_head_of_its_name_gets_one() -> None:
    assert ready(aged(60), heads=[head(name="canary")]).head_in == 0
    assert ready(aged(60)).head_in is None
    made: Any = default_head.manifest(model())
    assert made["metadata"]["name"] == "m"
    assert made["spec"] == {"modelRef": {"name": "m"}, "mode": "Track"}
    assert made["metadata"]["ownerReferences"][0]["controller"] is False


@pytest.mark.parametrize(("asked", "stalled"), [(512, False), (513, True)])
def test_a_context_that_the_base_does_not_take_starts_no_pod(asked: int, *, stalled: bool) -> None:
    short = {**RESOLVED, "contextTokens": 512}
    known = source.decide(SourceView(model(status={"resolved": short})))
    decision = ready(model(rollout={"maxModelTokens": asked}), source=known, trains=True)
    reasons = {c.type: c.reason for c in decision.status.conditions}
    assert (reasons["Ready"] == "ContextTooLong") == stalled
    assert (decision.rollout_replicas, decision.trainer_replicas) == (
        (None, None) if stalled else (1, 1)
    )
    if stalled:
        (said,) = [c for c in decision.status.conditions if c.type == "RolloutsReady"]
        assert "spec.rollout.maxModelTokens is 513, and the base takes 512" in said.message


@pytest.mark.parametrize(
    ("adapter", "rank", "stalled"),
    [
        ({"rank": 16}, 16, False),
        ({"rank": 4}, 16, True),
        ({"type": "Full"}, 16, True),
        ({"type": "Full"}, 0, False),
        ({"rank": 16}, 0, True),
    ],
)
def test_checkpoints_that_an_earlier_model_of_the_name_left_must_fit(
    adapter: dict[str, Any], rank: int, *, stalled: bool
) -> None:
    left = checkpoint("m", 1)
    left = left.model_copy(update={"spec": left.spec.model_copy(update={"lora_rank": rank})})
    decision = ready(model(adapter=adapter), lineage=grow([left], BASE_POINT), trains=True)
    said = {c.type: c for c in decision.status.conditions}
    assert (said["Stalled"].status == "True") == stalled
    assert (decision.rollout_replicas is None) == stalled
    if stalled:
        assert said["Ready"].reason == "AdapterMismatch"
        theirs = f"spec.adapter.rank {rank}" if rank else "spec.adapter.type Full"
        assert f"create it with {theirs} or under another name" in said["Ready"].message
