"""What reconcilers observe of a model's Checkpoints, in whatever order they came to be known."""

from __future__ import annotations

import copy

import pytest
from bench.operator.scale import SPEC, checkpoint

from espalier.controllers.observed.lister import Lister
from espalier.controllers.observed.parsing import UnreadableObjectError
from espalier.kube.cache import Cache
from espalier.kube.objects import Body, ObjectKey

NAMESPACE, MODEL, STEPS = "team", "tiny", 4
NAMES = [f"{MODEL}-{step:06d}" for step in range(1, STEPS + 1)]


def bodies() -> list[Body]:
    """A model and its Checkpoints, as the API server returns them."""
    model = {"metadata": {"name": MODEL, "namespace": NAMESPACE}, "spec": SPEC}
    found = [model, *(checkpoint(NAMESPACE, MODEL, step) for step in range(1, STEPS + 1))]
    return [versioned(body, number) for number, body in enumerate(found, 1)]


def versioned(body: Body, version: int) -> Body:
    return {**body, "metadata": {**body["metadata"], "resourceVersion": str(version)}}


def put(cache: Cache, body: Body) -> None:
    cache.put("Checkpoint" if "digest" in body["spec"] else "TrainableModel", body)


def known(lister: Lister) -> list[str]:
    return [found.metadata.name for found in lister.lineage(NAMESPACE, MODEL).line("main")]


@pytest.mark.parametrize("before", range(STEPS + 2))
def test_a_lineage_is_the_same_whenever_its_checkpoints_were_taken_in(before: int) -> None:
    cache = Cache(packed=["Checkpoint"])
    for body in bodies()[:before]:
        put(cache, body)
    lister = Lister(cache)
    for body in reversed(bodies()[before:]):
        put(cache, body)
    assert known(lister) == NAMES


def not_understood() -> Body:
    body = copy.deepcopy(bodies()[2])
    body["spec"]["ofTomorrow"] = True
    return body


def with_one_not_understood() -> tuple[Cache, Lister]:
    cache = Cache(packed=["Checkpoint"])
    lister = Lister(cache)
    for number, body in enumerate(bodies()):
        put(cache, not_understood() if number == 2 else body)
    return cache, lister


def test_a_checkpoint_that_is_not_understood_is_told_to_whoever_asks_for_the_lineage() -> None:
    _, lister = with_one_not_understood()
    for _ in range(2):
        with pytest.raises(UnreadableObjectError, match="ofTomorrow"):
            lister.lineage(NAMESPACE, MODEL)


def test_once_it_is_understood_the_lineage_has_all_of_them() -> None:
    cache, lister = with_one_not_understood()
    put(cache, versioned(bodies()[2], 20))
    assert known(lister) == NAMES


def test_once_it_is_gone_the_lineage_has_the_others() -> None:
    cache, lister = with_one_not_understood()
    cache.drop(ObjectKey("Checkpoint", NAMESPACE, NAMES[1]))
    assert known(lister) == [NAMES[0], *NAMES[2:]]
    put(cache, versioned(checkpoint(NAMESPACE, MODEL, STEPS + 1), 21))
    assert known(lister) == [NAMES[0], *NAMES[2:], f"{MODEL}-{STEPS + 1:06d}"]
