"""How a model name in a request becomes an adapter and pods, or the reason why not."""

from __future__ import annotations

from typing import Any

import pytest
from tests.gateway.world import LOADING, World, condition, digest, terminated, waiting

from espalier.gateway.world.routing import (
    NotReady,
    Slug,
    Target,
    Unknown,
    could_be_committed,
    find_model,
    find_slug,
    resolve,
    slug_of,
    slugs,
    split,
)
from espalier.gateway.world.world import NamespacedName

A, B = digest("a1"), digest("b2")
ADAPTER_A, ADAPTER_B = "arith@a1a1a1a1a1a1", "arith@b2b2b2b2b2b2"


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def arith(world: World) -> NamespacedName:
    """A model whose head serves checkpoint A, with one ready rollout."""
    model = world.model("arith")
    world.head(model, A, step=1)
    world.checkpoint(model, "arith-000001", A)
    world.checkpoint(model, "arith-000002", B, step=2)
    world.pod(model, "arith-rollout-0")
    return model


def where(found: object) -> tuple[NamespacedName, str, list[str]]:
    """Model, adapter and the addresses of the pods that a request may go to."""
    assert isinstance(found, Target)
    return found.model, found.adapter, [pod.address for pod in found.pods]


@pytest.mark.parametrize(
    ("asked", "adapter"),
    [
        ("arith", ADAPTER_A),
        ("arith@arith-000002", ADAPTER_B),
        ("arith@base", "base"),
        ("home/arith", ADAPTER_A),
        ("home/arith@arith-000002", ADAPTER_B),
    ],
)
def test_a_name_means_one_set_of_weights(
    world: World, arith: NamespacedName, asked: str, adapter: str
) -> None:
    slug, ref = split(asked)
    assert find_model(world.served, slug) == arith
    assert where(resolve(world.served, arith, ref)) == (arith, adapter, ["10.0.0.1:8000"])


def test_the_head_of_a_model_without_steps_is_the_base(world: World) -> None:
    model = world.model("fresh")
    world.head(model, "")
    world.pod(model, "fresh-rollout-0")
    assert where(resolve(world.served, model, "")) == (model, "base", ["10.0.0.1:8000"])


def test_a_fork_serves_the_checkpoint_it_started_from_under_its_own_name(
    world: World, arith: NamespacedName
) -> None:
    fork = world.model("fork", rootCheckpointRef={"name": "arith-000002"})
    world.head(fork, B, step=2)
    world.pod(fork, "fork-rollout-0", ip="10.0.0.2")
    for ref in ("", "arith-000002"):
        target = resolve(world.served, fork, ref)
        assert where(target) == (fork, "fork@b2b2b2b2b2b2", ["10.0.0.2:8000"])


def test_a_checkpoint_of_another_model_is_unknown(world: World, arith: NamespacedName) -> None:
    other = world.model("other")
    world.head(other, "")
    world.pod(other, "other-rollout-0")
    found = resolve(world.served, other, "arith-000002")
    assert isinstance(found, Unknown)
    assert "no checkpoint 'arith-000002'" in found.detail


def test_a_head_of_the_models_name_over_another_model_is_not_its_head(world: World) -> None:
    model, other = world.model("arith"), world.model("other")
    world.head(other, A)
    world.pod(model, "arith-rollout-0")
    assert isinstance(resolve(world.served, model, ""), NotReady)


@pytest.fixture
def canary(world: World, arith: NamespacedName) -> NamespacedName:
    """A second head of arith, at another checkpoint."""
    world.head(arith, B, step=2, name="canary")
    return arith.beside("canary")


@pytest.mark.parametrize(
    ("asked", "adapter"),
    [
        ("arith", ADAPTER_A),
        ("canary", ADAPTER_B),
        ("home/canary", ADAPTER_B),
        ("canary@base", "base"),
        ("canary@arith-000001", ADAPTER_A),
    ],
)
def test_two_heads_of_a_model_are_sampled_under_their_own_names(
    world: World, arith: NamespacedName, canary: NamespacedName, asked: str, adapter: str
) -> None:
    name, ref = split(asked)
    slug = find_slug(world.served, name)
    assert isinstance(slug, Slug)
    assert slug.model == arith
    target = resolve(world.served, slug.model, ref, slug.head)
    assert where(target) == (arith, adapter, ["10.0.0.1:8000"])


def test_who_trains_through_another_head_is_sent_to_the_model(
    world: World, canary: NamespacedName
) -> None:
    found = find_model(world.served, "canary")
    assert isinstance(found, Unknown)
    assert found.nearest == ("arith",)
    assert "a head of model arith" in found.detail


def test_a_head_that_serves_nothing_yet_is_not_ready(world: World, arith: NamespacedName) -> None:
    world.head(arith, None, name="canary")
    found = resolve(world.served, arith, "", arith.beside("canary"))
    assert isinstance(found, NotReady)


def test_a_models_name_is_its_own_though_another_models_head_has_it(
    world: World, arith: NamespacedName
) -> None:
    other = world.model("canary")
    world.head(arith, B, name="canary")
    assert find_slug(world.served, "canary") == Slug(other, other)
    assert [slug.head.name for slug in slugs(world.served)] == ["arith", "canary"]


def test_the_head_of_a_model_that_is_gone_is_no_slug(
    world: World, arith: NamespacedName, canary: NamespacedName
) -> None:
    world.drop("TrainableModel", "arith")
    assert isinstance(find_slug(world.served, "canary"), Unknown)


def test_a_head_of_the_name_of_another_namespaces_model_must_be_qualified() -> None:
    world = World("one", "two")
    first, second = world.model("arith", "one"), world.model("canary", "two")
    world.head(first, A, name="canary")
    assert find_slug(world.served, "canary") == Unknown(
        "model 'canary' is in more than one namespace", ("one/canary", "two/canary")
    )
    assert find_slug(world.served, "one/canary") == Slug(first, NamespacedName("one", "canary"))
    assert [slug_of(world.served, slug.head) for slug in slugs(world.served)] == [
        "arith",
        "two/canary",
        "one/canary",
    ]
    assert find_model(world.served, "two/canary") == second


def test_a_mistyped_head_names_the_nearest(world: World, canary: NamespacedName) -> None:
    found = find_slug(world.served, "canry")
    assert isinstance(found, Unknown)
    assert found.nearest == ("canary",)


@pytest.mark.parametrize(
    ("slug", "nearest"),
    [("arit", ("arith",)), ("airth", ("arith",)), ("home/arit", ()), ("zzz", ())],
)
def test_an_unknown_model_names_the_nearest(
    world: World, arith: NamespacedName, slug: str, nearest: tuple[str, ...]
) -> None:
    found = find_model(world.served, slug)
    assert isinstance(found, Unknown)
    assert set(nearest) <= set(found.nearest)


def test_an_unknown_checkpoint_names_the_nearest_and_the_base(
    world: World, arith: NamespacedName
) -> None:
    found = resolve(world.served, arith, "arith-00002")
    assert isinstance(found, Unknown)
    assert found.nearest[0] == "arith@arith-000002"
    found = resolve(world.served, arith, "bse")
    assert isinstance(found, Unknown)
    assert found.nearest == ("arith@base",)


def test_a_name_in_two_namespaces_must_be_qualified() -> None:
    world = World("one", "two")
    first, second = world.model("arith", "one"), world.model("arith", "two")
    alone = world.model("alone", "two")
    found = find_model(world.served, "arith")
    assert found == Unknown(
        "model 'arith' is in more than one namespace", ("one/arith", "two/arith")
    )
    assert find_model(world.served, "two/arith") == second
    assert [slug_of(world.served, m) for m in (first, second, alone)] == [
        "one/arith",
        "two/arith",
        "alone",
    ]


def test_a_namespace_that_is_not_served_is_unknown(world: World) -> None:
    world.model("hidden", "elsewhere")
    assert isinstance(find_model(world.served, "hidden"), Unknown)
    assert isinstance(find_model(world.served, "elsewhere/hidden"), Unknown)


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (
            {"conditions": [condition("PodScheduled", "False", "Unschedulable", "0/1 nodes")]},
            "Unschedulable",
            "0/1 nodes",
        ),
        (
            {"containerStatuses": [waiting("ImagePullBackOff", "back-off pulling image x")]},
            "ImagePullBackOff",
            "back-off pulling image x",
        ),
        (
            {"containerStatuses": [waiting("CrashLoopBackOff", "back-off 10s restarting")]},
            "CrashLoopBackOff",
            "back-off 10s restarting",
        ),
        (
            {
                "initContainerStatuses": [waiting("ErrImagePull", "not found")],
                "containerStatuses": [waiting("PodInitializing")],
            },
            "ErrImagePull",
            "not found",
        ),
        (
            {
                "phase": "Failed",
                "containerStatuses": [
                    terminated(64, '{"detail": "no base", "reason": "BaseMissing"}')
                ],
            },
            "BaseMissing",
            "no base",
        ),
        ({"phase": "Failed"}, "Finished", "ended"),
        (LOADING, "ContainersNotReady", "loading"),
        ({"containerStatuses": [waiting("ContainerCreating")]}, "ContainersNotReady", "loading"),
    ],
)
def test_an_unready_rollout_tells_its_kubernetes_reason(
    world: World, status: dict[str, Any], reason: str, message: str
) -> None:
    model = world.model("arith")
    world.head(model, A)
    world.pod(model, "arith-rollout-0", **status)
    found = resolve(world.served, model, "")
    assert isinstance(found, NotReady)
    assert found.reason == reason
    assert message in found.message


def test_a_fault_is_told_before_mere_loading(world: World) -> None:
    model = world.model("arith")
    world.head(model, None)
    world.pod(model, "arith-rollout-0", **LOADING)
    world.pod(model, "arith-rollout-1", containerStatuses=[waiting("ImagePullBackOff", "no such")])
    found = resolve(world.served, model, "")
    assert isinstance(found, NotReady)
    assert found.reason == "ImagePullBackOff"


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        ([], "Pending"),
        ([condition("Ready", "False", "RolloutsLoading")], "RolloutsLoading"),
        (
            [
                condition("SourceResolved", "False", "BaseUnreadable"),
                condition("Ready", "False", "NotReady"),
            ],
            "BaseUnreadable",
        ),
    ],
)
def test_without_pods_the_model_tells_why(
    world: World, conditions: list[dict[str, Any]], reason: str
) -> None:
    model = world.model("arith", conditions=conditions)
    found = resolve(world.served, model, "base")
    assert isinstance(found, NotReady)
    assert found.reason == reason


def test_zero_replicas_are_told_with_the_field_to_set(world: World) -> None:
    model = world.model("arith", replicas=0)
    found = resolve(world.served, model, "base")
    assert isinstance(found, NotReady)
    assert found.reason == "NoReplicas"
    assert "spec.rollout.replicas" in found.remedy


def test_only_ready_rollouts_of_the_model_get_requests(world: World, arith: NamespacedName) -> None:
    other = world.model("other")
    world.pod(other, "other-rollout-0", ip="10.0.0.9")
    world.pod(arith, "arith-rollout-1", ip="10.0.0.2", port=9000)
    world.pod(arith, "arith-rollout-2", ip="10.0.0.3", **LOADING)
    world.pod(
        arith,
        "arith-rollout-3",
        ip="10.0.0.4",
        metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"},
        conditions=[condition("Ready", "True")],
    )
    world.pod(arith, "arith-trainer-0", ip="10.0.0.5", role="trainer")
    world.pod(arith, "arith-rollout-4", ip="fd00::1")
    found = resolve(world.served, arith, "")
    _, _, addresses = where(found)
    assert addresses == ["10.0.0.1:8000", "10.0.0.2:9000", "[fd00::1]:8000"]


def test_a_pod_that_goes_is_forgotten(world: World, arith: NamespacedName) -> None:
    world.drop("Pod", "arith-rollout-0")
    assert isinstance(resolve(world.served, arith, ""), NotReady)


@pytest.mark.parametrize(
    ("ref", "could"),
    [
        ("arith-000003", True),
        ("arith-b2-000003", True),
        ("arith-000002", False),
        ("arith-3", False),
        ("other-000003", False),
        ("base", False),
    ],
)
def test_only_the_name_of_an_unseen_checkpoint_is_worth_waiting_for(
    world: World, arith: NamespacedName, ref: str, could: bool
) -> None:
    assert could_be_committed(world.served, arith, ref) is could


def test_a_models_uid_means_it_as_huds_client_takes_it() -> None:
    world = World()
    model = world.model("arith")
    assert find_model(world.served, "uid-arith") == model
    hidden = World("here")
    hidden.model("arith", "elsewhere")
    assert isinstance(find_model(hidden.served, "uid-arith"), Unknown)


def test_an_object_of_another_namespace_named_after_a_uid_does_not_take_it_over() -> None:
    world = World("here", "there")
    model = world.model("arith")
    other = world.model("other", "there")
    world.head(other, A, name="uid-arith")
    world.model("uid-arith", "there")
    assert find_model(world.served, "uid-arith") == model
    # Its own slug says where it is.
    assert slug_of(world.served, NamespacedName("there", "uid-arith")) == "there/uid-arith"
    assert find_model(world.served, "there/uid-arith") == NamespacedName("there", "uid-arith")
