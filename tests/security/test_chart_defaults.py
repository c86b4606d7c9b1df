"""What the chart installs unless it is told otherwise, and what it takes besides."""

from __future__ import annotations

import pytest
from dev.apiserver import ApiServer, ApiServerError
from tests.api.test_chart import SYSTEM, TEAM, VALUES, environment, objects, render
from tests.security.policies import End, reaches

from espalier.gateway.settings import GatewaySettings


def ours(role: str) -> End:
    return End(TEAM, {"espalier.dev/role": role, "app": "x"})


def installed(component: str) -> End:
    name = {"app.kubernetes.io/name": "espalier", "app.kubernetes.io/instance": "espalier"}
    return End(SYSTEM, {**name, "app.kubernetes.io/component": component})


OPERATOR, GATEWAY = installed("operator"), installed("gateway")
TRAINER, ROLLOUT, RUNNER = ours("trainer"), ours("rollout"), ours("runner")
IMPORTER, COLLECTOR = ours("importer"), ours("collector")
BESIDE, FOREIGN = End(TEAM, {"app": "reward"}), End("elsewhere", {"app": "any"})
PROMETHEUS, OUTSIDE = End("monitoring", {"app": "prometheus"}), End()
# What impersonates a part of ours by its labels, in a namespace of its own.
IMPOSTOR = End("elsewhere", GATEWAY.labels)

OPEN = [
    *((who, pod, 8000) for who in (OPERATOR, GATEWAY) for pod in (TRAINER, ROLLOUT)),
    (OPERATOR, IMPORTER, 8000),
    (RUNNER, GATEWAY, 8000),
    (RUNNER, BESIDE, 9000),
    (FOREIGN, GATEWAY, 8000),
    (OUTSIDE, GATEWAY, 8443),
    (PROMETHEUS, GATEWAY, 8080),
    (PROMETHEUS, OPERATOR, 8080),
    (PROMETHEUS, RUNNER, 8080),
    *((PROMETHEUS, pod, 8000) for pod in (TRAINER, ROLLOUT)),
    *((who, OUTSIDE, port) for who in (OPERATOR, GATEWAY) for port in (443, 6443)),
    (IMPORTER, OUTSIDE, 443),
]
SHUT = [
    *(
        (who, pod, 8000)
        for who in (BESIDE, FOREIGN, IMPOSTOR, RUNNER)
        for pod in (TRAINER, ROLLOUT)
    ),
    *((TRAINER, to, 8000) for to in (ROLLOUT, GATEWAY, OPERATOR)),
    *((pod, OUTSIDE, 443) for pod in (TRAINER, ROLLOUT, RUNNER, COLLECTOR)),
    *((pod, OUTSIDE, 80) for pod in (OPERATOR, GATEWAY, IMPORTER)),
    *((FOREIGN, pod, 8080) for pod in (OPERATOR, GATEWAY)),
    *((BESIDE, pod, 8000) for pod in (RUNNER, IMPORTER, COLLECTOR)),
    *((who, RUNNER, 8080) for who in (BESIDE, FOREIGN, TRAINER)),
    (PROMETHEUS, RUNNER, 8000),
    (OUTSIDE, OPERATOR, 8000),
    (ROLLOUT, TRAINER, 8000),
    (GATEWAY, BESIDE, 8000),
    (IMPORTER, BESIDE, 8000),
    (RUNNER, FOREIGN, 9000),
]


def test_by_default_each_part_reaches_whom_it_needs_and_is_reached_by_nobody_else() -> None:
    policies = objects(render(*VALUES), "NetworkPolicy").values()
    assert [case for case in OPEN if not reaches(policies, *case)] == []
    assert [case for case in SHUT if reaches(policies, *case)] == []
    assert not objects(render(*VALUES, "networkPolicy.enabled=false"), "NetworkPolicy")


def test_a_policy_can_be_made_narrower_and_wider_by_name() -> None:
    clients = "networkPolicy.gatewayClients[0].namespaceSelector.matchLabels.team=ml"
    address = "networkPolicy.%s[0].ipBlock.cidr=10.0.0.1/32"
    values = (clients, address % "apiServerPeers", "hub.httpsProxy=http://proxy.example:3128")
    policies = objects(render(*VALUES, *values), "NetworkPolicy").values()
    assert not reaches(policies, FOREIGN, GATEWAY, 8000)
    assert reaches(policies, RUNNER, GATEWAY, 8000)
    # A pod elsewhere is no address that was named.
    assert not reaches(policies, OPERATOR, FOREIGN, 443)
    assert reaches(policies, IMPORTER, OUTSIDE, 3128)
    assert not reaches(policies, IMPORTER, OUTSIDE, 3129)


NAMED = r"namespaceSelector.matchLabels.kubernetes\.io/metadata\.name"
TRACING = (
    "tracing.endpoint=http://otel.traces:4318",
    f"networkPolicy.collectorPeers[0].{NAMED}=traces",
)


def test_spans_reach_their_collector_and_nobody_else_and_only_where_there_is_one() -> None:
    there, other = End("traces", {"app": "otel"}), End("elsewhere", {"app": "otel"})
    senders = (OPERATOR, GATEWAY, TRAINER, ROLLOUT, RUNNER)
    policies = objects(render(*VALUES, *TRACING), "NetworkPolicy").values()
    for sender in senders:
        assert reaches(policies, sender, there, 4318)
        assert not reaches(policies, sender, other, 4318)
    assert not reaches(policies, TRAINER, there, 443)
    assert not reaches(policies, COLLECTOR, there, 4318)
    policies = objects(render(*VALUES), "NetworkPolicy").values()
    assert not any(reaches(policies, sender, there, 4318) for sender in senders)
    with pytest.raises(
        ApiServerError, match=r"name the collector in networkPolicy\.collectorPeers"
    ):
        render(*VALUES, TRACING[0])
    assert render(*VALUES, TRACING[0], "networkPolicy.enabled=false")


def test_a_drain_takes_one_pod_at_a_time_and_replicas_are_spread() -> None:
    text = render(*VALUES, "gateway.priorityClassName=serving")
    budgets = objects(text, "PodDisruptionBudget")
    deployments = objects(text, "Deployment")
    for name, deployment in deployments.items():
        assert budgets[name]["spec"]["maxUnavailable"] == 1
        assert budgets[name]["spec"]["selector"] == deployment["spec"]["selector"]
    pod = deployments[f"{SYSTEM}/espalier-gateway"]["spec"]["template"]["spec"]
    assert pod["priorityClassName"] == "serving"
    (spread,) = pod["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"


def test_https_is_served_from_a_secret_beside_the_runners_http() -> None:
    text = render(*VALUES, "gateway.tls.secretName=gateway-tls")
    deployment = objects(text, "Deployment")[f"{SYSTEM}/espalier-gateway"]
    settings = GatewaySettings.read({**environment(deployment), "POD_NAMESPACE": SYSTEM})
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert mounts["tls"] == str(settings.tls_directory)
    assert ports["https"] == settings.tls_port
    service = objects(text, "Service")[f"{SYSTEM}/espalier-gateway"]
    assert {p["port"]: p["targetPort"] for p in service["spec"]["ports"]} == {
        80: "http",
        443: "https",
    }
    plain = objects(render(*VALUES), "Deployment")[f"{SYSTEM}/espalier-gateway"]
    assert (
        GatewaySettings.read({**environment(plain), "POD_NAMESPACE": SYSTEM}).tls_directory is None
    )


def test_tokens_of_the_api_servers_audience_are_a_value_and_off() -> None:
    for values, taken in (((), False), (("gateway.apiServerTokens=true",), True)):
        deployment = objects(render(*VALUES, *values), "Deployment")[f"{SYSTEM}/espalier-gateway"]
        settings = GatewaySettings.read({**environment(deployment), "POD_NAMESPACE": SYSTEM})
        assert settings.api_server_tokens is taken


def test_routes_wait_as_long_as_training_takes_and_name_what_they_lack(
    apiserver: ApiServer,
) -> None:
    ingress = ("gateway.ingress.enabled=true", "gateway.ingress.host=models.example")
    route = ("gateway.httpRoute.enabled=true", "gateway.httpRoute.parentRefs[0].name=public")
    text = render(*VALUES, *ingress, "gateway.ingress.tlsSecretName=t", *route)
    (made,) = objects(text, "HTTPRoute").values()
    (rule,) = made["spec"]["rules"]
    assert rule["timeouts"] == {"request": "900s", "backendRequest": "900s"}
    (found,) = objects(text, "Ingress").values()
    assert (
        found["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "900"
    )
    namespace = "chart-routes"
    apiserver.create_namespace(namespace)
    # The Gateway API's CRDs are not there; everything else is taken as it is.
    taken = render(*VALUES, *ingress, "crds.install=false")
    parts = "\n---\n".join(
        part for part in taken.split("\n---\n") if "kind: Ingress" in part or "Disruption" in part
    ).replace(SYSTEM, namespace)
    answers = apiserver.kubectl("apply", "--dry-run=server", "-f", "-", stdin=parts)
    assert len(answers.splitlines()) == 3
    with pytest.raises(ApiServerError, match=r"gateway\.ingress\.host is not set"):
        render(*VALUES, ingress[0])
    with pytest.raises(ApiServerError, match=r"gateway\.httpRoute\.parentRefs is empty"):
        render(*VALUES, route[0])
