"""What the catalogue offers: bases to fork by name, and which models can be trained or forked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from tests.fakes.cluster import FakeCluster
from tests.gateway.world import World

from espalier.environment import SettingsError
from espalier.gateway.access.auth import Authenticator, User
from espalier.gateway.access.offers import Offers, trainable
from espalier.gateway.settings import GatewaySettings
from espalier.kube.cluster import Extra

NAMESPACE = World().model("arith").namespace
SPEC = {
    "source": {"base": {"image": "registry.example/tiny:1"}},
    "storage": {"persistentVolumeClaim": {"claimName": "weights"}},
}
ANN = User("ann", ())
FORK = {"create checkpointheads", "create trainingruns", "create trainablemodels"}


def offer(**changes: Any) -> dict[str, Any]:
    return {"name": "Qwen/Qwen3-4B", "namespace": "ml", "spec": SPEC, **changes}


class Cluster(FakeCluster):
    """Everybody may do what is said."""

    def __init__(self, rights: set[str]) -> None:
        super().__init__()
        self.rights = rights

    async def review_access(  # noqa: PLR0917 the port's signature
        self,
        user: str,
        groups: Sequence[str],
        verb: str,
        group: str,
        resource: str,
        namespace: str,
        name: str,
        *,
        uid: str = "",
        extra: Extra = (),
    ) -> bool:
        return f"{verb} {resource}" in self.rights


def test_an_offer_is_found_by_id_and_by_name_in_any_case() -> None:
    offers = Offers.read(json.dumps([offer()]), ("ml",))
    (one,) = offers.offers
    assert offers.find("qwen/qwen3-4b") == offers.find(one.id) == one
    # The same in every replica, and another one in another namespace.
    other = Offers.read(json.dumps([offer(namespace="other")]), ("other",)).offers[0]
    assert one.id == Offers.read(json.dumps([offer()]), ("ml",)).offers[0].id != other.id
    assert offers.find("Qwen/Qwen3-8B") is None


@pytest.mark.parametrize(
    ("bases", "said"),
    [
        ([offer(spec={"source": {}})], "[0].spec.storage: Field required"),
        ([offer(size=4)], "[0].size: Extra inputs are not permitted"),
        ([offer(namespace="else")], "[0].namespace: else is not served: name one of ml"),
        ([offer(), offer(name="qwen/qwen3-4b")], "[1].name: qwen/qwen3-4b is offered twice"),
        ([offer(name="ml/arith")], "[0].name: ml/arith reads as a model of a served namespace"),
        ([offer(name="a@b")], "[0].name: "),
        (
            [offer(spec={**SPEC, "source": {"checkpointRef": {"name": "arith-000001"}}})],
            "[0].spec.source: an offer is of a base",
        ),
    ],
)
def test_a_base_that_cannot_be_forked_is_refused_when_the_gateway_starts(
    bases: list[dict[str, Any]], said: str
) -> None:
    environment = {"POD_NAMESPACE": "system", "ESPALIER_NAMESPACES": "ml"}
    with pytest.raises(SettingsError) as refused:
        GatewaySettings.read(environment | {"ESPALIER_BASES": json.dumps(bases)})
    assert f"ESPALIER_BASES: {said}" in str(refused.value)


@pytest.mark.parametrize(
    ("rights", "run", "stalled", "able"),
    [
        ({"update trainingruns"}, "Client", True, True),
        # The runner trains it, and a fork is not the caller's to make.
        ({"update trainingruns"}, "Runner", False, False),
        ({"update trainingruns"}, "", False, False),
        (set(), "Client", False, False),
        (FORK - {"create trainingruns"}, "Client", False, False),
        (FORK, "", False, True),
        (FORK, "Runner", False, True),
        (FORK, "", True, False),
    ],
)
async def test_a_model_is_trainable_to_who_can_train_or_fork_it(
    rights: set[str], run: str, stalled: bool, able: bool
) -> None:
    world = World()
    model = world.model("arith", **(STALLED if stalled else {}))
    world.head(model, "sha256:" + "a" * 64)
    if run:
        world.run(model, "first", driver=run)
    auth = Authenticator(Cluster(rights))
    assert await trainable(auth, ANN, world.served, model) is able


STALLED = {
    "conditions": [
        {
            "type": "Stalled",
            "status": "True",
            "reason": "ImportFailed",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ]
}
