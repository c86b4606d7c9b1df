"""The cache: newest version wins in any order, indexes agree with the objects."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.kube.cache import Cache
from espalier.kube.objects import ObjectKey

Body = dict[str, Any]


def run(name: str = "r", version: int = 1, model: str = "arith") -> Body:
    return {
        "metadata": {"name": name, "namespace": "default", "resourceVersion": str(version)},
        "spec": {"modelRef": {"name": model}},
    }


def pod(name: str, *, owner: str = "", **labels: str) -> Body:
    metadata: Body = {
        "name": name,
        "namespace": "default",
        "resourceVersion": "1",
        "labels": {f"espalier.dev/{label}": value for label, value in labels.items()},
    }
    if owner:
        metadata["ownerReferences"] = [{"kind": "StatefulSet", "name": owner, "controller": True}]
    return {"metadata": metadata}


RUN = ObjectKey("TrainingRun", "default", "r")


def test_an_older_version_is_ignored() -> None:
    cache = Cache()
    cache.put("TrainingRun", run(version=2))
    cache.put("TrainingRun", run(version=1, model="older"))
    assert cache.get(RUN) == run(version=2)


def test_an_older_version_does_not_bring_a_deleted_object_back() -> None:
    cache = Cache()
    cache.put("TrainingRun", run(version=1))
    cache.forget("TrainingRun", run(version=3))
    cache.put("TrainingRun", run(version=2))
    assert cache.get(RUN) is None


def test_a_late_deletion_spares_the_object_created_after_it() -> None:
    cache = Cache()
    cache.put("TrainingRun", run(version=5))
    cache.forget("TrainingRun", run(version=3))
    assert cache.get(RUN) == run(version=5)


@pytest.mark.parametrize(
    ("index", "names"),
    [
        ({"model": "arith"}, ["trainer", "rollout"]),
        ({"model": "arith", "role": "rollout"}, ["rollout"]),
        ({"run": "r"}, ["runner"]),
        ({"owner": ObjectKey("StatefulSet", "default", "arith-trainer")}, ["trainer"]),
        ({"model": "absent"}, []),
        ({}, ["trainer", "rollout", "runner"]),
    ],
)
def test_pods_are_found_by_model_role_run_and_owner(index: Body, names: list[str]) -> None:
    cache = Cache()
    cache.put("Pod", pod("trainer", owner="arith-trainer", model="arith", role="trainer"))
    cache.put("Pod", pod("rollout", model="arith", role="rollout"))
    cache.put("Pod", pod("runner", run="r", role="runner"))
    assert [body["metadata"]["name"] for body in cache.list("Pod", **index)] == names


def test_a_list_is_of_one_namespace_or_of_all() -> None:
    cache = Cache()
    cache.put("TrainingRun", run())
    elsewhere = run()
    cache.put("TrainingRun", {**elsewhere, "metadata": {**elsewhere["metadata"], "namespace": "b"}})
    assert len(cache.list("TrainingRun")) == 2
    assert cache.list("TrainingRun", "default", model="arith") == [run()]


def test_listeners_hear_every_change_with_old_and_new() -> None:
    cache, heard = Cache(), list[tuple[ObjectKey, Body | None, Body | None]]()
    cache.on_change(lambda key, old, new, _: heard.append((key, old, new)))
    cache.put("TrainingRun", run(version=1))
    cache.put("TrainingRun", run(version=1))
    cache.put("TrainingRun", run(version=2))
    cache.drop(RUN)
    cache.drop(RUN)
    assert heard == [
        (RUN, None, run(version=1)),
        (RUN, run(version=1), run(version=2)),
        (RUN, run(version=2), None),
    ]


def test_a_listener_that_fails_costs_the_others_nothing() -> None:
    cache, heard = Cache(), list[ObjectKey]()

    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    cache.on_change(fail)
    cache.on_change(lambda key, *_: heard.append(key))
    cache.put("TrainingRun", run())
    assert heard == [RUN]


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from(["m", "n"]), st.booleans()), max_size=12
    ),
    st.randoms(use_true_random=False),
)
def test_events_in_any_order_lead_to_the_same_cache(
    history: list[tuple[str, str, bool]], random: Any
) -> None:
    events = [
        (deleted, run(name, version, model))
        for version, (name, model, deleted) in enumerate(history, start=1)
    ]
    expected = {body["metadata"]["name"]: (deleted, body) for deleted, body in events}
    cache = Cache()
    random.shuffle(events)
    for deleted, body in events:
        (cache.forget if deleted else cache.put)("TrainingRun", body)

    live = [body for deleted, body in expected.values() if not deleted]
    by_name = sorted(cache.list("TrainingRun"), key=lambda body: body["metadata"]["name"])
    assert by_name == sorted(live, key=lambda body: body["metadata"]["name"])
    for model in ("m", "n"):
        indexed = cache.list("TrainingRun", model=model)
        of_model = [body for body in live if body["spec"]["modelRef"]["name"] == model]
        assert sorted(map(str, indexed)) == sorted(map(str, of_model))
