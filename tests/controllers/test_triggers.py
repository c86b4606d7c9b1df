"""Which objects a change concerns."""

from __future__ import annotations

from typing import Any

from espalier.controllers.process.triggers import concerned
from espalier.kube.cache import Cache
from espalier.kube.objects import Body, ObjectKey

CRITIC = ObjectKey("TrainableModel", "default", "critic")


def body(name: str, spec: dict[str, Any]) -> Body:
    metadata = {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1"}
    return {"metadata": metadata, "spec": spec}


def test_a_judge_that_comes_or_goes_concerns_the_runs_that_ask_it() -> None:
    cache = Cache()
    judge = {"modelRef": {"name": "critic"}, "rubric": "Is it kind?"}
    rewards = [{"name": "kind", "judge": judge}, {"name": "right", "exact": {}}]
    cache.put("TrainingRun", body("asks", {"modelRef": {"name": "a"}, "rewards": rewards}))
    cache.put("TrainingRun", body("asks-none", {"modelRef": {"name": "b"}}))
    critic = body("critic", {"source": {}})
    for old, new in ((None, critic), (critic, None)):
        runs = {key.name for key in concerned(cache, CRITIC, old, new) if key.kind == "TrainingRun"}
        assert runs == {"asks"}
    assert all(key.kind != "TrainingRun" for key in concerned(cache, CRITIC, critic, critic))


def test_a_checkpoint_concerns_the_runs_that_are_held_near_it_and_their_models() -> None:
    cache = Cache()
    reference = {"reference": {"checkpointRef": {"name": "teacher-000002"}}}
    cache.put("TrainingRun", body("held", {"modelRef": {"name": "a"}, "kl": reference}))
    cache.put(
        "TrainingRun", body("free", {"modelRef": {"name": "b"}, "kl": {"reference": {"base": {}}}})
    )
    cache.put("TrainingRun", body("plain", {"modelRef": {"name": "c"}}))
    made = body("teacher-000002", {"modelRef": {"name": "teacher"}})
    key = ObjectKey("Checkpoint", "default", "teacher-000002")
    found = {(k.kind, k.name) for k in concerned(cache, key, None, made)}
    assert {("TrainingRun", "held"), ("TrainableModel", "a")} <= found
    assert not {name for _, name in found} & {"free", "b", "plain", "c"}
