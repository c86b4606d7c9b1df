"""What the API server accepts and refuses, and how it says so."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dev.apiserver import ApiServer, ApiServerError
from tests.api.cases import BAD, CHANGES, FREE, GOOD
from tests.api.manifests import (
    CHECKPOINT,
    HEAD,
    MODEL,
    RUN,
    Manifest,
    apply,
    edited,
    read,
    try_out,
    write_status,
)

from espalier.api.crds import KINDS
from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun


def refused(server: ApiServer, namespace: str, candidate: Manifest) -> str:
    with pytest.raises(ApiServerError) as caught:
        try_out(server, namespace, candidate)
    return str(caught.value)


def test_all_four_kinds_are_served_in_their_own_category(apiserver: ApiServer) -> None:
    served = apiserver.kubectl("api-resources", "--categories=espalier", "-o", "name").split()
    assert set(served) == {f"{kind.plural}.espalier.dev" for kind in KINDS}


@pytest.mark.parametrize("candidate", GOOD.values(), ids=GOOD.keys())
def test_accepts(apiserver: ApiServer, namespace_of_tries: str, candidate: Manifest) -> None:
    try_out(apiserver, namespace_of_tries, candidate)


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_refuses_with_field_and_remedy(
    apiserver: ApiServer, namespace_of_tries: str, case: tuple[Manifest, str, Any, str, str]
) -> None:
    good, path, value, field, remedy = case
    message = refused(apiserver, namespace_of_tries, edited(good, path, value))
    assert field in message
    assert remedy in message


@pytest.fixture(scope="module")
def populated(apiserver: ApiServer) -> str:
    """A namespace with one good object of each kind."""
    apiserver.create_namespace("test-populated")
    apply(apiserver, "test-populated", MODEL, RUN, HEAD, CHECKPOINT)
    return "test-populated"


@pytest.fixture(scope="module")
def namespace_of_tries(apiserver: ApiServer) -> str:
    """An empty namespace for objects that are validated and never stored."""
    apiserver.create_namespace("test-tries")
    return "test-tries"


@pytest.mark.parametrize("case", CHANGES.values(), ids=CHANGES.keys())
def test_identity_does_not_change(
    apiserver: ApiServer, populated: str, case: tuple[Manifest, str, Any, str]
) -> None:
    good, path, value, remedy = case
    assert remedy in refused(apiserver, populated, edited(good, path, value))


def test_a_model_is_scaled_by_its_rollouts(apiserver: ApiServer) -> None:
    apiserver.create_namespace("test-scale")
    where = ("-n", "test-scale")
    apply(apiserver, "test-scale", MODEL)
    there = {"rollout": {"replicas": 3, "selector": "espalier.dev/role=rollout"}}
    write_status(apiserver, "test-scale", "tmodel", "arith", there)
    apiserver.kubectl("scale", "tmodel/arith", "--replicas=2", *where)
    assert read(apiserver, "test-scale", "tmodel", "arith")["spec"]["rollout"]["replicas"] == 2
    path = "/apis/espalier.dev/v1alpha1/namespaces/test-scale/trainablemodels/arith/scale"
    scale = json.loads(apiserver.kubectl("get", "--raw", path))
    assert scale["status"] == {"replicas": 3, "selector": "espalier.dev/role=rollout"}
    # What the kind does not take, no autoscaler can ask for.
    with pytest.raises(ApiServerError, match="less than or equal to 64"):
        apiserver.kubectl("scale", "tmodel/arith", "--replicas=65", *where)


@pytest.mark.parametrize("changed", FREE.values(), ids=FREE.keys())
def test_settings_change_in_place(apiserver: ApiServer, populated: str, changed: Manifest) -> None:
    try_out(apiserver, populated, changed)


def test_a_new_object_waits_for_its_first_reconcile(apiserver: ApiServer, populated: str) -> None:
    for resource, name in (("tmodel", "arith"), ("trun", "arith"), ("ckhead", "arith")):
        status = read(apiserver, populated, resource, name)["status"]
        assert status == {"observedGeneration": -1}


def test_defaults_are_those_of_the_types(apiserver: ApiServer, populated: str) -> None:
    stored = read(apiserver, populated, "trun", "arith")
    run, sparse = TrainingRun.model_validate(stored), TrainingRun.model_validate(RUN)
    assert run.spec == sparse.spec
    model = TrainableModel.model_validate(read(apiserver, populated, "tmodel", "arith"))
    assert model.spec == TrainableModel.model_validate(MODEL).spec


def test_spec_and_status_have_different_writers(apiserver: ApiServer, namespace: str) -> None:
    apply(apiserver, namespace, HEAD)
    write_status(apiserver, namespace, "ckhead", "arith", {"observedGeneration": 1, "term": 1})
    # A status that a user applies is dropped.
    apply(apiserver, namespace, edited(HEAD, "status.term", 9))
    head = read(apiserver, namespace, "ckhead", "arith")
    assert head["status"] == {"observedGeneration": 1, "term": 1}
    assert head["metadata"]["generation"] == 1


def test_a_field_of_the_datasets_own_is_kept(apiserver: ApiServer, populated: str) -> None:
    stored = read(apiserver, populated, "trun", "arith")
    assert stored["spec"]["taskset"]["reasoningGym"]["config"] == {"max_terms": 2, "p": 0.5}
