"""The chart, as helm renders it and as a real API server takes it."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from dev.apiserver import ApiServer, ApiServerError, binary

from espalier.controllers.process.settings import OperatorSettings
from espalier.core.manifests.installation import COPY_SIZE, TMP_SIZE, HubSettings, Images
from espalier.gateway.access.quotas import Limits
from espalier.gateway.settings import GatewaySettings
from espalier.telemetry.settings import passed_on

CHART = Path(__file__).resolve().parents[2] / "charts" / "espalier"
SYSTEM, TEAM, FOREIGN = "chart-system", "chart-team", "chart-foreign"
OPERATOR = f"system:serviceaccount:{SYSTEM}:espalier-operator"
GATEWAY = f"system:serviceaccount:{SYSTEM}:espalier-gateway"
RUNNER = f"system:serviceaccount:{TEAM}:espalier-runner"
PARTS = ("operator", "trainer", "runner", "rollout")
IMAGES = [f"images.{name}=registry.example/{name}:1" for name in PARTS]
# What has no default: images, and the namespaces to serve.
VALUES = (*IMAGES, f"namespaces={{{TEAM}}}")

Manifest = dict[str, Any]


def helm(*arguments: str) -> str:
    done = subprocess.run(
        [str(binary("helm")), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode != 0:
        raise ApiServerError(done.stderr.strip())
    return done.stdout


@cache
def render(*values: str, files: tuple[str, ...] = (), known: tuple[str, ...] = ()) -> str:
    """``known``: kinds that the cluster knows beside Kubernetes' own."""
    arguments = ["template", "espalier", str(CHART), "--namespace", SYSTEM]
    # helm built from source takes itself for an ancient Kubernetes.
    arguments += ["--kube-version", "1.35.0"]
    for kind in known:
        arguments += ["--api-versions", kind]
    for name in files:
        arguments += ["--values", str(CHART / name)]
    for value in values:
        arguments += ["--set", value]
    return helm(*arguments)


def documents(text: str) -> list[Manifest]:
    """By libyaml: of the CRDs' half a megabyte Python's own parser makes ten times the work."""
    return [item for item in yaml.load_all(text, Loader=yaml.CSafeLoader) if item]


def objects(text: str, kind: str) -> dict[str, Manifest]:
    found = [item for item in documents(text) if item["kind"] == kind]
    return {f"{o['metadata'].get('namespace', '')}/{o['metadata']['name']}": o for o in found}


def environment(deployment: Manifest) -> dict[str, str]:
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


@pytest.mark.parametrize("files", [(), ("values-kind.yaml",), ("values-gpu.yaml",)])
def test_helm_finds_no_fault(files: tuple[str, ...]) -> None:
    values = [argument for name in files for argument in ("--values", str(CHART / name))]
    sets = [argument for value in VALUES for argument in ("--set", value)]
    helm("lint", "--strict", str(CHART), *values, *sets)


def test_a_missing_image_is_named() -> None:
    with pytest.raises(
        ApiServerError, match=r"images\.rollout is not set: give the full reference"
    ):
        render(*VALUES[:3], VALUES[-1])


def test_an_unknown_value_is_refused() -> None:
    with pytest.raises(ApiServerError, match="namespace"):
        render(*IMAGES, "namespace=team")


def test_without_namespaces_to_serve_it_says_what_to_set() -> None:
    with pytest.raises(
        ApiServerError, match=r"namespaces is not set: .* --set 'namespaces=\{ml\}'"
    ):
        render(*IMAGES)


def test_its_own_namespace_holds_the_signing_keys_and_is_not_served() -> None:
    said = rf"namespaces lists {SYSTEM}, the release's own namespace, where the signing key lies"
    with pytest.raises(ApiServerError, match=said):
        render(*IMAGES, f"namespaces={{{TEAM},{SYSTEM}}}")


def test_the_operator_knows_images_and_gateway() -> None:
    deployments = objects(render(*IMAGES, "namespaces={a,b}"), "Deployment")
    variables = environment(deployments[f"{SYSTEM}/espalier-operator"])
    assert variables["ESPALIER_NAMESPACES"] == "a,b"
    assert variables["ESPALIER_IMAGE_TRAINER"] == "registry.example/trainer:1"
    assert variables["ESPALIER_IMAGE_ROLLOUT"] == "registry.example/rollout:1"
    assert variables["ESPALIER_IMAGE_RUNNER"] == "registry.example/runner:1"
    assert variables["ESPALIER_GATEWAY_URL"] == f"http://espalier-gateway.{SYSTEM}.svc"


def test_the_quotas_of_callers_reach_the_gateway() -> None:
    for values, limits in (
        ((), Limits()),
        (
            (
                *("quotas.requests=0", "quotas.tokensPerMinute=6000000"),
                *("quotas.bodyPercent=100", "quotas.connections=0"),
            ),
            Limits(0, 6_000_000, 100, 0),
        ),
    ):
        sets = (f"gateway.{value}" for value in values)
        deployments = objects(render(*VALUES, *sets), "Deployment")
        variables = environment(deployments[f"{SYSTEM}/espalier-gateway"])
        told = GatewaySettings.read({**variables, "POD_NAMESPACE": SYSTEM})
        assert told.limits == limits
    with pytest.raises(ApiServerError, match="bodyPercent"):
        render(*VALUES, "gateway.quotas.bodyPercent=0")


def test_the_way_to_the_collector_reaches_both_processes_and_through_one_the_pods() -> None:
    values = (
        *("tracing.endpoint=http://otel.traces:4318", "tracing.sampler=traceidratio"),
        *("tracing.ratio=0.25", "tracing.resourceAttributes.deployment\\.environment=live"),
        "networkPolicy.enabled=false",
    )
    wanted = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel.traces:4318",
        "OTEL_TRACES_SAMPLER": "traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.25",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=live",
    }
    for given, told in ((values, wanted), ((), {})):
        deployments = objects(render(*VALUES, *given), "Deployment")
        for name in ("operator", "gateway"):
            variables = environment(deployments[f"{SYSTEM}/espalier-{name}"])
            found = {k: v for k, v in variables.items() if k.startswith("OTEL_")}
            assert found == told
            assert passed_on(found) == told
    with pytest.raises(ApiServerError, match="sampler"):
        render(*VALUES, "tracing.sampler=sometimes")


def test_what_pods_take_of_a_nodes_disk_is_bounded() -> None:
    for values, sizes in (((), (TMP_SIZE, COPY_SIZE)), (("podDisk.tmp=1Gi",), ("1Gi", COPY_SIZE))):
        deployments = objects(render(*VALUES, *values), "Deployment")
        variables = environment(deployments[f"{SYSTEM}/espalier-operator"])
        told = OperatorSettings.read({**variables, "POD_NAMESPACE": SYSTEM, "POD_NAME": "p"})
        assert (told.tmp_size, told.copy_size) == sizes
    with pytest.raises(ApiServerError, match="podDisk"):
        render(*VALUES, "podDisk.tmp=much")


def test_digests_fix_what_every_pod_runs() -> None:
    digests = {name: f"sha256:{index:064x}" for index, name in enumerate(PARTS)}
    values = [f"imageDigests.{name}={digest}" for name, digest in digests.items()]
    deployments = objects(render(*VALUES, *values), "Deployment")
    pinned = {name: f"registry.example/{name}:1@{digest}" for name, digest in digests.items()}
    for part in ("operator", "gateway"):
        (container,) = deployments[f"{SYSTEM}/espalier-{part}"]["spec"]["template"]["spec"][
            "containers"
        ]
        assert container["image"] == pinned["operator"]
    variables = environment(deployments[f"{SYSTEM}/espalier-operator"])
    told = OperatorSettings.read({**variables, "POD_NAMESPACE": SYSTEM, "POD_NAME": "p"})
    assert told.images == Images(pinned["trainer"], pinned["rollout"], pinned["runner"])
    with pytest.raises(ApiServerError, match="imageDigests"):
        render(*VALUES, "imageDigests.runner=latest")
    twice = (f"images.runner={pinned['runner']}", *values)
    with pytest.raises(ApiServerError, match="leave one of the two out"):
        render(*VALUES, *twice)


def test_ids_are_fixed_or_left_to_the_platform_in_every_pod() -> None:
    for values, assigned in (((), False), (("podIds=Assigned",), True)):
        deployments = objects(render(*VALUES, *values), "Deployment")
        for deployment in deployments.values():
            context = deployment["spec"]["template"]["spec"]["securityContext"]
            ids = [context.get(name) for name in ("runAsUser", "runAsGroup", "fsGroup")]
            assert ids == ([None] * 3 if assigned else [65532] * 3)
            assert context["runAsNonRoot"] is True
        variables = environment(deployments[f"{SYSTEM}/espalier-operator"])
        told = OperatorSettings.read({**variables, "POD_NAMESPACE": SYSTEM, "POD_NAME": "p"})
        assert told.assigned_ids is assigned
    with pytest.raises(ApiServerError, match="podIds"):
        render(*VALUES, "podIds=None")


def test_the_way_to_the_hub_and_pull_secrets_reach_the_children() -> None:
    values = (
        "hub.endpoint=https://mirror.example",
        "hub.httpProxy=http://proxy:1",
        "hub.httpsProxy=http://proxy:2",
        "hub.noProxy=.svc",
        "hub.patienceSeconds=60",
        "hub.caBundle.configMap=roots",
        "hub.caBundle.key=all.pem",
        "imagePullSecrets[0].name=one",
        "imagePullSecrets[1].name=two",
    )
    deployments = objects(render(*VALUES, *values), "Deployment")
    variables = environment(deployments[f"{SYSTEM}/espalier-operator"])
    told = OperatorSettings.read({**variables, "POD_NAMESPACE": SYSTEM, "POD_NAME": "p"})
    assert told.pull_secrets == ("one", "two")
    assert told.hub == HubSettings(
        endpoint="https://mirror.example",
        http_proxy="http://proxy:1",
        https_proxy="http://proxy:2",
        no_proxy=".svc",
        ca_config_map="roots",
        ca_key="all.pem",
        patience_seconds=60,
    )
    plain = environment(objects(render(*VALUES), "Deployment")[f"{SYSTEM}/espalier-operator"])
    assert (
        OperatorSettings.read({**plain, "POD_NAMESPACE": SYSTEM, "POD_NAME": "p"}).hub
        == HubSettings()
    )


def test_crds_are_optional_and_outlive_the_release() -> None:
    kept = objects(render(*VALUES), "CustomResourceDefinition")
    assert len(kept) == 4
    for crd in kept.values():
        assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert not objects(render(*VALUES, "crds.install=false"), "CustomResourceDefinition")


def test_no_role_has_a_wildcard_or_lists_secrets() -> None:
    text = render(*IMAGES, "namespaces={a}")
    roles = {**objects(text, "Role"), **objects(text, "ClusterRole")}
    rules = [rule for role in roles.values() for rule in role["rules"]]
    assert not [r for r in rules if "*" in (*r["verbs"], *r["resources"], *r["apiGroups"])]
    secrets = {verb for r in rules if "secrets" in r["resources"] for verb in r["verbs"]}
    assert secrets == {"create", "get", "update"}


@pytest.fixture(scope="module")
def installed(apiserver: ApiServer) -> ApiServer:
    """The chart installed into an API server, watching one namespace of two."""
    for namespace in (SYSTEM, TEAM, FOREIGN):
        apiserver.create_namespace(namespace)
        label = "pod-security.kubernetes.io/warn=restricted"
        apiserver.kubectl("label", "namespace", namespace, label)
    text = render(*VALUES)
    apiserver.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
    return apiserver


@pytest.mark.parametrize("files", [("values-kind.yaml",), ("values-gpu.yaml",)])
def test_the_api_server_takes_every_object(installed: ApiServer, files: tuple[str, ...]) -> None:
    text = render(*VALUES, files=files)
    options = ("--server-side", "--force-conflicts", "--dry-run=server")
    answers = installed.kubectl("apply", *options, "-f", "-", stdin=text).splitlines()
    assert len(answers) == len(documents(text))


def test_the_gateway_knows_the_bases_that_may_be_forked_by_name(tmp_path: Path) -> None:
    model = """
  - name: Qwen/Qwen3-4B
    namespace: ml
    spec:
      source: {base: {huggingFace: {repository: Qwen/Qwen3-4B, revision: %s}}}
      storage: {persistentVolumeClaim: {claimName: espalier-weights}}
""" % ("a" * 40)
    (tmp_path / "bases.yaml").write_text(f"gateway:\n  bases:{model}")
    text = render(*IMAGES, "namespaces={ml}", files=(str(tmp_path / "bases.yaml"),))
    variables = environment(objects(text, "Deployment")[f"{SYSTEM}/espalier-gateway"])
    read = GatewaySettings.read(variables | {"POD_NAMESPACE": SYSTEM})
    (offer,) = read.offers.offers
    assert (offer.name, offer.namespace) == ("Qwen/Qwen3-4B", "ml")
    nothing = environment(objects(render(*VALUES), "Deployment")[f"{SYSTEM}/espalier-gateway"])
    assert nothing["ESPALIER_BASES"] == "[]"
    with pytest.raises(ApiServerError, match="missing property 'spec'"):
        render(*VALUES, "gateway.bases[0].name=x", "gateway.bases[0].namespace=ml")


@pytest.mark.parametrize("name", ["espalier-operator", "espalier-gateway"])
def test_pods_pass_the_restricted_profile(installed: ApiServer, name: str) -> None:
    deployment = objects(render(*VALUES), "Deployment")[f"{SYSTEM}/{name}"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": SYSTEM},
        "spec": deployment["spec"]["template"]["spec"],
    }
    enforce = "pod-security.kubernetes.io/enforce=restricted"
    installed.kubectl("label", "namespace", SYSTEM, enforce, "--overwrite")
    installed.kubectl("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(pod))
    container = pod["spec"]["containers"][0]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["resources"]["requests"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


ALLOWED = [
    *((OPERATOR, TEAM, f"{verb} {kind}") for verb in ("list", "watch") for kind in (
        "trainablemodels", "trainingruns", "checkpointheads", "checkpoints", "pods",
        "statefulsets.apps", "deployments.apps", "replicasets.apps", "jobs.batch",
    )),
    *((OPERATOR, TEAM, f"patch {kind} --subresource=status") for kind in (
        "trainablemodels", "trainingruns", "checkpointheads", "checkpoints",
    )),
    *((OPERATOR, TEAM, f"{verb} {kind}") for verb in ("create", "patch") for kind in (
        "checkpoints", "statefulsets.apps", "deployments.apps", "jobs.batch",
        "services", "events",
    )),
    (OPERATOR, TEAM, "create checkpointheads"),
    (OPERATOR, TEAM, "delete checkpoints"),
    (OPERATOR, TEAM, "delete trainingruns"),
    (OPERATOR, TEAM, "delete jobs.batch"),
    (OPERATOR, TEAM, "get configmaps"),
    (OPERATOR, TEAM, "list events"),
    (OPERATOR, TEAM, "get persistentvolumeclaims"),
    (OPERATOR, SYSTEM, "update leases.coordination.k8s.io"),
    (OPERATOR, SYSTEM, "create secrets"),
    (OPERATOR, SYSTEM, "get secrets/espalier-signing-key"),
    (OPERATOR, SYSTEM, "get secrets/espalier-gateway-key"),
    (OPERATOR, SYSTEM, "update secrets/espalier-gateway-key"),
    (OPERATOR, SYSTEM, "update secrets/espalier-scrape-token"),
    (OPERATOR, TEAM, "patch configmaps/espalier-public-keys"),
    (GATEWAY, TEAM, "watch checkpointheads"),
    (GATEWAY, TEAM, "list pods"),
    (GATEWAY, TEAM, "impersonate serviceaccounts"),
    (GATEWAY, SYSTEM, "get secrets/espalier-gateway-key"),
    (GATEWAY, TEAM, "get secrets/espalier-api-keys"),
    (GATEWAY, TEAM, "get serviceaccounts"),
    (GATEWAY, TEAM, "watch statefulsets.apps"),
    (GATEWAY, TEAM, "watch deployments.apps"),
    (GATEWAY, TEAM, "watch replicasets.apps"),
    (GATEWAY, TEAM, "watch jobs.batch"),
    (GATEWAY, TEAM, "create tokenreviews.authentication.k8s.io"),
    (GATEWAY, TEAM, "create subjectaccessreviews.authorization.k8s.io"),
    (RUNNER, TEAM, "get trainablemodels"),
    (RUNNER, TEAM, "create trainablemodels --subresource=sample"),
    (GATEWAY, TEAM, "patch trainingruns --subresource=status"),
    (RUNNER, TEAM, "update trainingruns"),
]  # fmt: skip
FORBIDDEN = [
    *((OPERATOR, TEAM, f"{verb} {kind}") for verb in ("update", "patch") for kind in (
        "trainablemodels", "trainingruns", "checkpointheads",
    )),
    (OPERATOR, TEAM, "delete trainablemodels"),
    (OPERATOR, TEAM, "delete checkpointheads"),
    (OPERATOR, TEAM, "create pods"),
    (OPERATOR, TEAM, "create replicasets.apps"),
    (OPERATOR, TEAM, "create pods --subresource=exec"),
    (OPERATOR, TEAM, "get secrets"),
    (OPERATOR, TEAM, "patch configmaps/another"),
    (OPERATOR, SYSTEM, "update secrets/another"),
    (OPERATOR, SYSTEM, "list secrets"),
    (OPERATOR, SYSTEM, "get secrets/another"),
    (OPERATOR, FOREIGN, "list trainablemodels"),
    (OPERATOR, FOREIGN, "create jobs.batch"),
    (OPERATOR, TEAM, "create tokenreviews.authentication.k8s.io"),
    (GATEWAY, SYSTEM, "get secrets/espalier-signing-key"),
    (GATEWAY, SYSTEM, "get secrets/espalier-scrape-token"),
    (GATEWAY, SYSTEM, "update secrets/espalier-gateway-key"),
    *((GATEWAY, TEAM, f"{verb} {kind}") for verb in ("create", "update", "patch") for kind in (
        "trainablemodels", "trainingruns", "checkpointheads",
    )),
    (GATEWAY, SYSTEM, "impersonate serviceaccounts"),
    (GATEWAY, FOREIGN, "impersonate serviceaccounts"),
    (GATEWAY, TEAM, "patch checkpointheads --subresource=status"),
    (GATEWAY, TEAM, "create deployments.apps"),
    (GATEWAY, TEAM, "delete checkpointheads"),
    (GATEWAY, TEAM, "create secrets"),
    (GATEWAY, TEAM, "get secrets/another"),
    (GATEWAY, TEAM, "list secrets/espalier-api-keys"),
    (GATEWAY, TEAM, "update secrets/espalier-api-keys"),
    (GATEWAY, SYSTEM, "get secrets/espalier-api-keys"),
    (GATEWAY, TEAM, "create serviceaccounts --subresource=token"),
    (GATEWAY, FOREIGN, "list pods"),
    (RUNNER, TEAM, "patch checkpointheads"),
    (RUNNER, TEAM, "create trainingruns"),
    (RUNNER, TEAM, "get secrets"),
    (RUNNER, FOREIGN, "get trainablemodels"),
]  # fmt: skip


def may(server: ApiServer, user: str, namespace: str, request: str) -> bool:
    arguments = ("auth", "can-i", *request.split(), "--as", user, "-n", namespace)
    try:
        return server.kubectl(*arguments).strip() == "yes"
    except ApiServerError as error:
        # No is an exit code without a complaint, but for a hint that a resource has no namespace.
        if str(error) and "is not namespace scoped" not in str(error):
            raise
        return False


@pytest.mark.parametrize(("user", "namespace", "request_"), ALLOWED)
def test_may(installed: ApiServer, user: str, namespace: str, request_: str) -> None:
    assert may(installed, user, namespace, request_)


@pytest.mark.parametrize(("user", "namespace", "request_"), FORBIDDEN)
def test_may_not(installed: ApiServer, user: str, namespace: str, request_: str) -> None:
    assert not may(installed, user, namespace, request_)


def test_whom_the_gateway_may_act_for_can_be_named() -> None:
    names = "{ann,build-bot}"
    text = render(
        *(*VALUES, f"gateway.impersonation.serviceAccounts={names}"),
        *("gateway.impersonation.users={eve@example.org}", "gateway.impersonation.groups={ml}"),
    )
    role = objects(text, "Role")[f"{TEAM}/espalier-gateway"]
    (rule,) = [rule for rule in role["rules"] if "impersonate" in rule["verbs"]]
    assert (rule["resources"], rule["resourceNames"]) == (["serviceaccounts"], ["ann", "build-bot"])
    rules = objects(text, "ClusterRole")[f"/{SYSTEM}-espalier-gateway-acts-for"]["rules"]
    assert {rule["resources"][0]: rule["resourceNames"] for rule in rules} == {
        "users": ["eve@example.org"],
        "groups": ["ml"],
    }
    assert "acts-for" not in render(*VALUES)
    more = render(*VALUES, "gateway.impersonation.extraKeys={scopes.example}")
    (rule,) = [
        rule
        for rule in objects(more, "ClusterRole")[f"/{SYSTEM}-espalier-gateway"]["rules"]
        if "impersonate" in rule["verbs"]
    ]
    assert rule["resources"] == ["uids", "userextras/scopes.example"]
    # Nobody names the groups by which the API server knows its own.
    with pytest.raises(ApiServerError, match="groups"):
        render(*VALUES, "gateway.impersonation.groups={system:masters}")


def test_users_with_the_roles_view_and_edit_see_and_edit(installed: ApiServer) -> None:
    for role in ("view", "edit"):
        installed.kubectl(
            *("create", "rolebinding", f"a-{role}", "-n", TEAM),
            *(f"--clusterrole={role}", f"--user={role}er"),
        )
    installed.wait_for(
        "the controller manager to aggregate roles",
        lambda: may(installed, "editer", TEAM, "patch checkpointheads"),
    )
    assert may(installed, "viewer", TEAM, "list checkpoints")
    assert may(installed, "editer", TEAM, "update trainablemodels --subresource=scale")
    assert not may(installed, "viewer", TEAM, "update trainablemodels --subresource=scale")
    assert not may(installed, "viewer", TEAM, "patch checkpointheads")
    sample = "create trainablemodels --subresource=sample"
    assert not may(installed, "viewer", TEAM, sample)
    assert may(installed, "editer", TEAM, sample)
    installed.kubectl(
        *("create", "rolebinding", "a-sampler", "-n", TEAM),
        *("--clusterrole=espalier-sampler", "--user=sampler"),
    )
    assert may(installed, "sampler", TEAM, sample.replace("models", "models/arith"))
    assert not may(installed, "sampler", TEAM, "list checkpoints")
    assert not may(installed, "editer", TEAM, "create checkpoints")
    assert not may(installed, "editer", TEAM, "patch checkpointheads --subresource=status")
