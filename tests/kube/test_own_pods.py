"""Strangers among the pods are counted and named, each once, and nobody else is."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest
from prometheus_client import REGISTRY

from espalier.api.meta import API_VERSION
from espalier.kube import own_pods
from espalier.kube.cache import Cache
from espalier.kube.objects import Body, key_of
from espalier.kube.own_pods import WORKLOADS, Membership

LABELS = {"espalier.dev/model": "m", "espalier.dev/role": "importer"}
VERSIONS = itertools.count(1)


def controller(kind: str, name: str, uid: str, api_version: str = "batch/v1") -> Body:
    reference = {"kind": kind, "name": name, "uid": uid, "controller": True}
    return {"apiVersion": api_version, **reference}


def body(name: str, uid: str, *owners: Body, **fields: Any) -> Body:
    metadata = {"name": name, "namespace": "team", "uid": uid, "labels": LABELS}
    versioned = {"resourceVersion": str(next(VERSIONS)), "ownerReferences": [*owners]}
    return {"metadata": {**metadata, **versioned}, **fields}


MODEL = body("m", "u-m")
JOB = body("m-import", "u-job", controller("TrainableModel", "m", "u-m", API_VERSION))
OURS = controller("Job", "m-import", "u-job")
REACHABLE = {"podIP": "10.0.0.9"}


@pytest.fixture
def cache() -> Cache:
    made = Cache()
    made.put("TrainableModel", MODEL)
    for kind in (*WORKLOADS, "TrainableModel"):
        made.mark_synced(kind)
    return made


def said(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What was said of pods; whatever ran before may still say something of its own."""
    return [one for one in caplog.records if one.name == own_pods.__name__]


def counted(reason: str, role: str = "importer") -> float:
    labels = {"role": role, "reason": reason}
    return REGISTRY.get_sample_value("espalier_pods_ignored_total", labels) or 0.0


def test_a_pod_of_ours_is_taken_and_nothing_said(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put("Job", JOB)
    assert Membership(cache).has(body("m-import-x", "u-1", OURS, status=REACHABLE))
    assert said(caplog) == []


@pytest.mark.parametrize("status", [REACHABLE, {"phase": "Succeeded"}])
def test_a_stranger_is_counted_and_named_once(
    cache: Cache, caplog: pytest.LogCaptureFixture, status: Body
) -> None:
    membership, before = Membership(cache), counted("NoController")
    for _ in range(3):
        with caplog.at_level(logging.WARNING):
            assert not membership.has(body("forged", "u-1", status=status))
    assert counted("NoController") == before + 1
    (once,) = said(caplog)
    assert "Pod team/forged" in once.message
    assert "NoController: the pod has no controller, must be of Job m-import" in once.message
    assert once.__dict__["object"] == "forged"


def test_the_next_pod_of_that_name_is_another_stranger(cache: Cache) -> None:
    membership, before = Membership(cache), counted("NoController")
    for uid in ("u-1", "u-2"):
        assert not membership.has(body("forged", uid, status=REACHABLE))
    assert counted("NoController") == before + 2


def test_a_role_that_nobody_heard_of_makes_no_series_of_its_own(cache: Cache) -> None:
    made = body("forged", "u-1", status=REACHABLE)
    made["metadata"]["labels"] = {**LABELS, "espalier.dev/role": "x" * 60}
    before = counted("RoleUnknown", "other")
    assert not Membership(cache).has(made)
    assert counted("RoleUnknown", "other") == before + 1


def test_a_pod_that_is_seen_before_its_job_is_waited_for_in_silence(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    membership = Membership(cache)
    early = body("m-import-x", "u-1", OURS, status={"phase": "Pending"})
    assert not membership.has(early)
    assert said(caplog) == []
    cache.put("Job", JOB)
    assert membership.has(early)


def test_what_a_first_list_has_not_brought_yet_is_nobodys_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    membership = Membership(Cache())
    assert not membership.has(body("m-import-x", "u-1", OURS, status=REACHABLE))
    assert said(caplog) == []


def test_a_pod_that_its_deleted_owners_leave_behind_is_no_forgery(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    membership, ours = Membership(cache), body("m-import-x", "u-1", OURS, status=REACHABLE)
    cache.put("Job", JOB)
    assert membership.has(ours)
    cache.drop(key_of("Job", JOB))
    assert not membership.has(ours)
    assert said(caplog) == []
    # Another of its name was never ours.
    assert not membership.has(body("m-import-x", "u-2", OURS, status=REACHABLE))
    assert "ControllerUnknown" in caplog.text


def test_a_pod_of_ours_whose_labels_are_changed_is_a_stranger(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    membership, ours = Membership(cache), body("m-import-x", "u-1", OURS, status=REACHABLE)
    cache.put("Job", JOB)
    assert membership.has(ours)
    relabelled = {**LABELS, "espalier.dev/role": "collector"}
    changed = {**ours, "metadata": {**ours["metadata"], "labels": relabelled}}
    assert not membership.has(changed)
    assert "WrongController" in caplog.text
