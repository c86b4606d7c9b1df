"""Where pods may and should run, beside or apart from others, as in core/v1."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from espalier.api.meta import LabelValue, Name, Type

LabelKey = Annotated[str, Field(min_length=1, max_length=317)]
TopologyKey = Annotated[str, Field(min_length=1, max_length=317)]
_LIST: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}


class Requirement(Type):
    """A condition on a label."""

    key: LabelKey = Field(description="key of the label.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = Field(
        description="operator that the label's value must satisfy; Gt and Lt are for nodes alone."
    )
    values: list[LabelValue] | None = Field(
        default=None, description="values to compare with.", max_length=32, json_schema_extra=_LIST
    )


class NodeSelectorTerm(Type):
    """Conditions on a node, all of which must hold."""

    match_expressions: list[Requirement] | None = Field(
        default=None,
        description="matchExpressions on the node's labels.",
        max_length=16,
        json_schema_extra=_LIST,
    )
    match_fields: list[Requirement] | None = Field(
        default=None,
        description="matchFields on the node's fields.",
        max_length=4,
        json_schema_extra=_LIST,
    )


class NodeSelector(Type):
    """Terms of which one must hold."""

    node_selector_terms: list[NodeSelectorTerm] = Field(
        description="nodeSelectorTerms of which one must hold.",
        min_length=1,
        max_length=8,
        json_schema_extra=_LIST,
    )


class PreferredNodes(Type):
    """A term that counts for a node."""

    weight: int = Field(ge=1, le=100, description="weight of the term.")
    preference: NodeSelectorTerm = Field(description="preference is the term.")


class NodeAffinity(Type):
    """Nodes to run on."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = Field(
        default=None,
        description="requiredDuringSchedulingIgnoredDuringExecution names the only nodes allowed.",
    )
    preferred_during_scheduling_ignored_during_execution: list[PreferredNodes] | None = Field(
        default=None,
        description="preferredDuringSchedulingIgnoredDuringExecution names better nodes.",
        max_length=8,
        json_schema_extra=_LIST,
    )


class LabelSelector(Type):
    """A selection of objects by their labels."""

    match_labels: dict[str, LabelValue] | None = Field(
        default=None, description="matchLabels that an object has.", max_length=16
    )
    match_expressions: list[Requirement] | None = Field(
        default=None,
        description="matchExpressions that an object's labels satisfy.",
        max_length=16,
        json_schema_extra=_LIST,
    )


class PodAffinityTerm(Type):
    """Pods to be near to, or far from."""

    label_selector: LabelSelector | None = Field(
        default=None, description="labelSelector of the other pods."
    )
    topology_key: TopologyKey = Field(description="topologyKey is the node label that means near.")
    namespaces: list[Name] | None = Field(
        default=None,
        description="namespaces of the other pods; the pod's own if unset.",
        max_length=16,
        json_schema_extra=_LIST,
    )


class PreferredPods(Type):
    """A term that counts for a node."""

    weight: int = Field(ge=1, le=100, description="weight of the term.")
    pod_affinity_term: PodAffinityTerm = Field(description="podAffinityTerm is the term.")


class PodAffinity(Type):
    """Pods to run near to, or far from."""

    required_during_scheduling_ignored_during_execution: list[PodAffinityTerm] | None = Field(
        default=None,
        description="requiredDuringSchedulingIgnoredDuringExecution must hold.",
        max_length=8,
        json_schema_extra=_LIST,
    )
    preferred_during_scheduling_ignored_during_execution: list[PreferredPods] | None = Field(
        default=None,
        description="preferredDuringSchedulingIgnoredDuringExecution should hold.",
        max_length=8,
        json_schema_extra=_LIST,
    )


class Affinity(Type):
    """Scheduling constraints as in core/v1."""

    node_affinity: NodeAffinity | None = Field(default=None, description="nodeAffinity of the pod.")
    pod_affinity: PodAffinity | None = Field(
        default=None, description="podAffinity of the pod: what to be near to."
    )
    pod_anti_affinity: PodAffinity | None = Field(
        default=None, description="podAntiAffinity of the pod: what to be far from."
    )


class TopologySpread(Type):
    """How evenly pods are spread, as in core/v1."""

    max_skew: int = Field(ge=1, le=1000, description="maxSkew between two domains, in pods.")
    topology_key: TopologyKey = Field(description="topologyKey is the node label of a domain.")
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = Field(
        description="whenUnsatisfiable says whether the pod waits."
    )
    label_selector: LabelSelector | None = Field(
        default=None, description="labelSelector of the pods that are counted."
    )
    min_domains: int | None = Field(
        default=None, ge=1, le=1000, description="minDomains that must be eligible."
    )
