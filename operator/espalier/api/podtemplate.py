"""What a user may set of a pod that the operator starts: where it runs and what it gets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from espalier.api.affinity import Affinity, TopologySpread
from espalier.api.meta import DataKey, LabelValue, Name, Quantity, ResourceName, Type, cel, list_map
from espalier.api.source import SecretKey

VARIABLE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
# Variables that Espalier sets in some pod, where it would overwrite a user's value.
RESERVED = frozenset(
    {
        "GLOO_SOCKET_IFNAME",
        "GOMP_SPINCOUNT",
        "HF_HUB_OFFLINE",
        "HOME",
        "NCCL_SOCKET_IFNAME",
        "OMP_NUM_THREADS",
        "PYTHONHASHSEED",
        "TMPDIR",
        "TOKENIZERS_PARALLELISM",
        "TORCHDYNAMO_DISABLE",
        "TRANSFORMERS_OFFLINE",
        "USER",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
        "VLLM_CACHE_ROOT",
        "VLLM_CONFIG_ROOT",
        "VLLM_ENABLE_V1_MULTIPROCESSING",
        "VLLM_HOST_IP",
        "VLLM_LOGGING_CONFIG_PATH",
        "VLLM_LOOPBACK_IP",
        "VLLM_NO_USAGE_STATS",
        "VLLM_PLUGINS",
    }
)
# What Kueue reads the name of a LocalQueue from.
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# Resources of which a pod may request less than its limit.
BOUNDED = ("cpu", "memory", "ephemeral-storage")


# Beginnings of keys by which Espalier finds its pods, or that loosen a security profile.
_OWN_KEYS = (
    "espalier.dev/",
    "app.kubernetes.io/managed-by",
    "container.apparmor.security.beta.kubernetes.io/",
    "container.seccomp.security.alpha.kubernetes.io/",
    "seccomp.security.alpha.kubernetes.io/",
)


def _own_keys(what: str) -> dict[str, Any]:
    """A rule that such keys are left alone. It looks at beginnings, whose cost is bounded."""
    taken = " || ".join(f"k.startsWith('{beginning}')" for beginning in _OWN_KEYS)
    return cel(
        (
            f"self.all(k, !({taken}))",
            f"{what} of espalier.dev, of the manager and of security profiles are Espalier's own: "
            "remove them",
        )
    )


class Toleration(Type):
    """A toleration as in core/v1."""

    key: str | None = Field(default=None, description="key of the taint.", max_length=317)
    operator: Literal["Exists", "Equal"] | None = Field(
        default=None, description="operator is Exists or Equal."
    )
    value: str | None = Field(default=None, description="value of the taint.", max_length=63)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="effect of the taint."
    )


def _below_limits(resource: str) -> str:
    """A rule that a resource's request is within its limit, where both are given."""
    request, limit = (f"self.{part}['{resource}']" for part in ("requests", "limits"))
    return (
        f"!has(self.requests) || !has(self.limits) || !('{resource}' in self.requests)"
        f" || !('{resource}' in self.limits)"
        f" || !quantity(string({limit})).isLessThan(quantity(string({request})))"
    )


class Resources(Type):
    """Compute resources as in core/v1."""

    requests: dict[str, Quantity] = Field(
        default_factory=dict,
        description="requests by resource name, as quantities.",
        max_length=16,
    )
    limits: dict[str, Quantity] = Field(
        default_factory=dict, description="limits by resource name, as quantities.", max_length=16
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            *(
                (
                    _below_limits(resource),
                    f"requests.{resource} must not be above limits.{resource}: raise the limit or "
                    "lower the request",
                    ".requests",
                )
                for resource in BOUNDED
            )
        )
    )


class ConfigMapKey(Type):
    """A key of a ConfigMap in the same namespace."""

    name: ResourceName = Field(description="name of the ConfigMap in the same namespace.")
    key: DataKey = Field(description="key in the ConfigMap's data.")


class VariableSource(Type):
    """Where a variable's value is kept; exactly one member."""

    secret_key_ref: SecretKey | None = Field(
        default=None, description="secretKeyRef is a key of a Secret."
    )
    config_map_key_ref: ConfigMapKey | None = Field(
        default=None, description="configMapKeyRef is a key of a ConfigMap."
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "has(self.secretKeyRef) != has(self.configMapKeyRef)",
                "set exactly one of secretKeyRef and configMapKeyRef",
            )
        )
    )


class Variable(Type):
    """A variable of the main container's environment."""

    name: str = Field(
        description="name of the variable. Those that Espalier sets itself are refused.",
        pattern=VARIABLE_PATTERN,
        max_length=128,
        json_schema_extra=cel(
            (
                f"self.matches(r'{VARIABLE_PATTERN}') && !self.startsWith('ESPALIER_')"
                f" && !(self in {sorted(RESERVED)})",
                "must be a variable's name that Espalier does not set itself "
                "(docs/guides/pod-templates.md)",
            )
        ),
    )
    value: str | None = Field(default=None, description="value as text.", max_length=4096)
    value_from: VariableSource | None = Field(
        default=None, description="valueFrom names where the value is kept, such as a Secret."
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            ("has(self.value) != has(self.valueFrom)", "set exactly one of value and valueFrom")
        )
    )


class PullSecret(Type):
    """A Secret to pull images with."""

    name: ResourceName = Field(description="name of the Secret in the same namespace.")


class PodTemplate(Type):
    """What a user may set of a pod: where it runs and what it gets, never what it may do."""

    labels: dict[str, LabelValue] | None = Field(
        default=None,
        description="labels of the pod, such as a queue's.",
        max_length=32,
        json_schema_extra=_own_keys("labels"),
    )
    annotations: dict[str, Annotated[str, Field(max_length=4096)]] | None = Field(
        default=None,
        description="annotations of the pod.",
        max_length=32,
        json_schema_extra=_own_keys("annotations"),
    )
    resources: Resources | None = Field(
        default=None, description="resources of the main container."
    )
    env: list[Variable] | None = Field(
        default=None,
        description="env of the main container, beside what Espalier sets.",
        max_length=64,
        json_schema_extra=list_map("name"),
    )
    image_pull_secrets: list[PullSecret] | None = Field(
        default=None,
        description="imagePullSecrets beside those of the installation.",
        max_length=16,
        json_schema_extra=list_map("name"),
    )
    node_selector: dict[str, LabelValue] | None = Field(
        default=None, description="nodeSelector of the pod.", max_length=32
    )
    tolerations: list[Toleration] | None = Field(
        default=None,
        description="tolerations of the pod.",
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    priority_class_name: Name | None = Field(
        default=None, description="priorityClassName of the pod."
    )
    queue_name: Name | None = Field(
        default=None,
        description="queueName of the LocalQueue of Kueue in the namespace. The pod waits there "
        "until its quota is free, and the conditions say Queued and why.",
    )
    affinity: Affinity | None = Field(default=None, description="affinity of the pod.")
    topology_spread_constraints: list[TopologySpread] | None = Field(
        default=None,
        description="topologySpreadConstraints of the pod.",
        max_length=8,
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    runtime_class_name: Name | None = Field(
        default=None, description="runtimeClassName of the pod, such as nvidia."
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                f"!has(self.queueName) || !has(self.labels) || !('{QUEUE_LABEL}' in self.labels)",
                f"queueName sets label {QUEUE_LABEL}: remove it from labels",
                ".labels",
            )
        )
    )
