"""The rollouts: a Deployment of vLLM servers, and a headless Service that names them."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.api.model.rollout import RolloutSpec
from espalier.api.trainablemodel import TrainableModel
from espalier.core.manifests.folders import folders_container, to_sample
from espalier.core.manifests.installation import ChildSettings
from espalier.core.manifests.intent import Manifest, child
from espalier.core.manifests.labels import child_labels
from espalier.core.manifests.pod import (
    PORT,
    PORT_NAME,
    Container,
    Requests,
    claim,
    http_probe,
    model_env,
    pod_metadata,
    pod_spec,
    public_keys,
    startup_probe,
)
from espalier.core.manifests.queue import NO_DEADLINE, gated, queue_labels, queue_of
from espalier.core.names import rollout_name

_REQUESTS = Requests("500m", "2Gi")
# Readiness is looked at every second: it is how a restart or a rollback shows.
_PROBES = {
    "readinessProbe": http_probe("/readyz", period=1, failures=3),
    "livenessProbe": http_probe("/healthz", period=20, failures=6, timeout=10),
}
# How long pulling and scheduling a pod may take, beyond its start.
_MARGIN_SECONDS = 300


def rollout_service(model: TrainableModel) -> Manifest:
    """A headless Service of the ready rollouts; the gateway itself goes to the pods."""
    name, labels = rollout_name(model.metadata.name), child_labels("rollout", model.metadata.name)
    spec = {
        "clusterIP": "None",
        "selector": labels,
        "ports": [{"name": PORT_NAME, "port": PORT, "targetPort": PORT_NAME}],
    }
    return child(
        "v1",
        "Service",
        name,
        labels=labels,
        owner_kind="TrainableModel",
        owner=model.metadata,
        spec=spec,
    )


def rollout_deployment(
    model: TrainableModel, settings: ChildSettings, *, base: str, others: Sequence[str] = ()
) -> Manifest:
    """The rollouts of a model on a base given by its digest, as many as its spec says.

    They read checkpoints of the models named by ``others`` too.
    """
    name, labels = rollout_name(model.metadata.name), child_labels("rollout", model.metadata.name)
    rollout = model.spec.rollout
    dtype = rollout.dtype or model.spec.trainer.dtype
    container = Container(
        name="rollout",
        image=settings.images.rollout,
        requests=_REQUESTS,
        env={
            **model_env(model, settings, base=base, dtype=dtype),
            "ESPALIER_MAX_MODEL_TOKENS": str(rollout.max_model_tokens),
            "ESPALIER_MAX_ADAPTERS": str(rollout.max_adapters),
            "ESPALIER_MAX_LORA_RANK": str(model.spec.adapter.rank),
            # Set only where it differs, so that pods of before this variable are left running.
            **({"ESPALIER_ADAPTER_TYPE": "Full"} if model.spec.adapter.type == "Full" else {}),
            **_parsers(rollout),
        },
        mounts=(*to_sample(model, base, others), *public_keys(settings)),
        serves=True,
        probes={"startupProbe": startup_probe(rollout.startup_seconds, period=1), **_PROBES},
    )
    spec = {
        "replicas": rollout.replicas,
        "revisionHistoryLimit": 1,
        "progressDeadlineSeconds": NO_DEADLINE
        if queue_of(rollout.template)
        else rollout.startup_seconds + _MARGIN_SECONDS,
        # There is rarely a spare GPU to start a new pod beside the old one.
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
        },
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": pod_metadata(labels | queue_labels(rollout.template), rollout.template),
            "spec": pod_spec(
                container,
                rollout.template,
                grace_seconds=60,
                init_containers=(
                    folders_container(
                        claim(model),
                        model.metadata.name,
                        container.image,
                        rollout.template,
                        base=base,
                        others=others,
                    ),
                ),
                pull_secrets=settings.pull_secrets,
                assigned_ids=settings.assigned_ids,
                tmp_size=settings.tmp_size,
            )
            | gated(rollout.template),
        },
    }
    return child(
        "apps/v1",
        "Deployment",
        name,
        labels=labels | queue_labels(rollout.template),
        owner_kind="TrainableModel",
        owner=model.metadata,
        spec=spec,
    )


def _parsers(rollout: RolloutSpec) -> dict[str, str]:
    """The parsers that the spec chooses; the rollout itself knows what Auto means for its base."""
    chosen = {
        "ESPALIER_TOOL_CALL_PARSER": rollout.tool_call_parser,
        "ESPALIER_REASONING_PARSER": rollout.reasoning_parser,
    }
    return {name: value for name, value in chosen.items() if value != "Auto"}
