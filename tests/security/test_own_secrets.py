"""The Secrets that the operator may write beside itself, by the rights that the chart gives it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dev.apiserver import ApiServer, ApiServerError
from tests.security.test_impersonation import team

from espalier.identity import GATEWAY_KEY_SECRET, OPERATOR_KEY_SECRET, SCRAPE_TOKEN_SECRET

__all__ = ["team"]

OWN = (OPERATOR_KEY_SECRET, GATEWAY_KEY_SECRET, SCRAPE_TOKEN_SECRET)
# Kubernetes fills it with a token of the account that it names.
TOKEN = {"type": "kubernetes.io/service-account-token"}
OF_THE_GATEWAY = {"kubernetes.io/service-account.name": "espalier-gateway"}


def created(server: ApiServer, team: str, body: dict[str, Any], *who: str) -> str:
    """What the API server says to it; nothing is made."""
    text = json.dumps({"apiVersion": "v1", "kind": "Secret", **body})
    arguments = ("create", "-f", "-", "--dry-run=server", "-n", f"{team}-system", *who)
    try:
        return server.kubectl(*arguments, stdin=text)
    except ApiServerError as error:
        return str(error)


@pytest.fixture(scope="module")
def as_operator(apiserver: ApiServer, team: str) -> str:
    """Impersonates the operator, once the policy is in force."""
    who = f"--as=system:serviceaccount:{team}-system:espalier-operator"
    other = {"metadata": {"name": "other"}}
    apiserver.wait_for(
        "the policy to be in force",
        lambda: "and no others" in created(apiserver, team, other, who),
    )
    return who


def test_the_operator_makes_its_keys_and_the_token_for_scraping(
    apiserver: ApiServer, team: str, as_operator: str
) -> None:
    for name in OWN:
        body = {"metadata": {"name": name}, "type": "Opaque"}
        assert "created" in created(apiserver, team, body, as_operator)


@pytest.mark.parametrize(
    "body",
    [
        {"metadata": {"name": "espalier-gateway-tls"}, "type": "Opaque"},
        {"metadata": {"generateName": f"{GATEWAY_KEY_SECRET}-"}},
        {"metadata": {"name": SCRAPE_TOKEN_SECRET, "annotations": OF_THE_GATEWAY}, **TOKEN},
        {"metadata": {"name": "mine", "annotations": OF_THE_GATEWAY}, **TOKEN},
    ],
    ids=["another name", "a name to be made", "a token by a name that it reads", "a token"],
)
def test_an_operator_that_was_taken_over_makes_no_other_secret(
    apiserver: ApiServer, team: str, as_operator: str, body: dict[str, Any]
) -> None:
    assert "and no others" in created(apiserver, team, body, as_operator)
    # Whoever else may make Secrets there is not asked.
    assert "created" in created(apiserver, team, body)
