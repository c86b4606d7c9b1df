"""Events tell what happened to an object; the same one twice is counted, not repeated."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from dev.apiserver import ApiServer
from tests.fakes.cluster import FakeCluster

from espalier.kube.apiserver import KubernetesCluster
from espalier.kube.cluster import ClusterError
from espalier.kube.events import EventRecorder

Body = dict[str, Any]


class Clock:
    """A minute passes with every look."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self._now += timedelta(minutes=1)
        return self._now


async def test_the_same_event_is_counted(
    kubernetes: KubernetesCluster, namespace: str, head: Body
) -> None:
    regarding = await kubernetes.apply("CheckpointHead", head)
    recorder = EventRecorder(kubernetes, "espalier-0", Clock())
    for _ in range(3):
        await recorder.record(regarding, "Normal", "Advanced", "serves arith-000002")

    (event,) = await kubernetes.list("Event", namespace)

    assert event["count"] == 3
    assert event["firstTimestamp"] == "2026-01-01T00:01:00Z"
    assert event["lastTimestamp"] == "2026-01-01T00:03:00Z"


async def test_other_reasons_and_messages_are_other_events(
    kubernetes: KubernetesCluster, namespace: str, head: Body
) -> None:
    regarding = await kubernetes.apply("CheckpointHead", head)
    recorder = EventRecorder(kubernetes)
    await recorder.record(regarding, "Normal", "Advanced", "serves arith-000002")
    await recorder.record(regarding, "Normal", "Advanced", "serves arith-000003")
    await recorder.record(regarding, "Warning", "Fenced", "a commit of an older term")

    events = await kubernetes.list("Event", namespace)

    assert sorted((e["type"], e["reason"], e["count"]) for e in events) == [
        ("Normal", "Advanced", 1),
        ("Normal", "Advanced", 1),
        ("Warning", "Fenced", 1),
    ]


async def test_kubectl_shows_the_event_with_its_object(
    kubernetes: KubernetesCluster, apiserver: ApiServer, namespace: str, head: Body
) -> None:
    regarding = await kubernetes.apply("CheckpointHead", head)
    await EventRecorder(kubernetes).record(regarding, "Warning", "Gated", "reward is below 0.42")

    shown = apiserver.kubectl("describe", "checkpointhead", "arith", "-n", namespace)

    assert "Gated" in shown
    assert "reward is below 0.42" in shown


async def test_a_long_message_is_cut_to_what_the_api_takes(
    kubernetes: KubernetesCluster, namespace: str, head: Body
) -> None:
    regarding = await kubernetes.apply("CheckpointHead", head)
    await EventRecorder(kubernetes).record(regarding, "Warning", "Failed", "x" * 5000)
    (event,) = await kubernetes.list("Event", namespace)
    assert event["message"] == "x" * 1024


async def test_an_event_that_cannot_be_recorded_is_logged_and_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = FakeCluster()
    head = {"metadata": {"name": "arith", "namespace": "default"}, "spec": {"mode": "Track"}}
    regarding = await cluster.apply("CheckpointHead", head)
    cluster.fail_after(1, ClusterError(403, "Forbidden", "no rights on events"))
    with caplog.at_level(logging.WARNING):
        await EventRecorder(cluster).record(regarding, "Normal", "Advanced", "serves")
    assert "no rights on events" in caplog.text
